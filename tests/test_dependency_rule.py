"""The dependency rule: tawin_kernels imports torch and triton; tawin never imports the main job, bench or tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tawin_kernels

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
KERNEL_FILES = sorted((KERNELS / "tawin_kernels").rglob("*.py"))
TAWIN_FILES = sorted((ROOT / "tawin").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it; "." for a relative import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found


def test_there_are_files_to_look_at():
    assert len(KERNEL_FILES) > 5
    assert len(TAWIN_FILES) > 5


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_the_kernels_import_torch_and_triton_and_nothing_else(path):
    assert imports(path) <= {".", "torch", "triton"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_the_kernels_import_each_other_relatively(path):
    assert "tawin_kernels" not in imports(path)


@pytest.mark.parametrize("path", TAWIN_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_neither_the_main_job_nor_benchmarks_nor_tests(path):
    assert not {"train", "bench", "tests", "tools"} & imports(path)


def test_the_folder_of_the_kernels_is_no_package_of_its_own():
    # Hugging Face publishes a package `kernels` that transformers imports; ours must not shadow it.
    assert not (KERNELS / "__init__.py").exists()


def test_the_kernels_import_and_run_with_the_base_dependencies_alone(tmp_path):
    script = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name}: it is no base dependency")

BLOCKED = {"transformers", "numpy", "safetensors", "scipy", "sklearn", "pyarrow", "datasets", "accelerate", "peft",
           "tokenizers", "matplotlib", "yaml", "tyro", "rich", "tqdm", "hypothesis", "pytest", "tawin"}
sys.meta_path.insert(0, Refuse())

import torch
from tawin_kernels import ItemTrie, TAWin, beam_step, tawin_grpo_loss

trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
nodes = torch.zeros(1, 1, dtype=torch.int64)
step = beam_step(torch.zeros(1, 1, 2), torch.zeros(4, 2), trie, nodes, torch.zeros(1, 1), 2)
assert step.tokens.tolist() == [[0, 2]]
hidden = torch.ones(1, 2, 1, 2, requires_grad=True)
result = tawin_grpo_loss(
    hidden, torch.randn(4, 2), torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2, 1, dtype=torch.bool),
    torch.eye(2)[:1], torch.zeros(1, 2), tawin=TAWin(),
)
result.loss.backward()
trie.save("trie.safetensors")
assert torch.equal(ItemTrie.load("trie.safetensors").edge_tokens, trie.edge_tokens)
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
"""
    package_root = Path(tawin_kernels.__file__).resolve().parent.parent
    code = f"import sys; sys.path.insert(0, {str(package_root)!r})\n{script}"
    completed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
