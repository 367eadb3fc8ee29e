"""The rule that keeps the house so: layers, sizes of folders, modules and functions, options, choices, binaries.

What is larger today is named with its size: it may shrink, and nothing may join it.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tawin.config import Config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tawin", "kernels/tawin_kernels", "bench", "tools")
MODULES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))

MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 12, 350, 60, 10
MOST_OPTIONS = 103  # the aim is 80
MOST_BINARY, MOST_BINARIES = 2_000_000, 5_000_000  # bytes; the aim is 1 MB a file, 3 MB in all

# Lines of a module, of a function's body, arguments of an internal function, where they are more.
MODULE_LINES = {
    "tawin/catalog/catalog.py": 500,
    "tawin/data/dataset.py": 480,
    "kernels/tawin_kernels/ops/beam_step/selection.py": 450,
    "kernels/tawin_kernels/ops/loss/kernels.py": 400,
    "kernels/tawin_kernels/checks.py": 400,
    "tools/cost/model.py": 400,
    "tools/cost/tables.py": 400,
    "tawin/search/completions.py": 400,
    "tawin/model/packing.py": 400,
    "kernels/tawin_kernels/ops/advantage/kernels.py": 400,
    "bench/step/cases.py": 400,
}
FUNCTION_LINES = {  # most are one call of many arguments
    "kernels/tawin_kernels/ops/loss/tawin_grpo.py: tawin_grpo_loss": 140,
    "kernels/tawin_kernels/ops/loss/reference.py: tawin_grpo_loss": 70,
    "kernels/tawin_kernels/ops/loss/reference.py: _group_loss": 70,
    "kernels/tawin_kernels/checks.py: check_tawin_grpo_loss": 80,
    "kernels/tawin_kernels/ops/loss/kernels.py: _forward": 80,
    "kernels/tawin_kernels/ops/beam_step/selection.py: select_children": 70,
    "kernels/tawin_kernels/ops/log_prob/logsumexp.py: vocabulary_statistics": 70,
    "kernels/tawin_kernels/ops/log_prob/slab_kernels.py: exponentials": 70,
    "tools/fuzz/ops.py: log_probs_case": 80,
    "tools/fuzz/ops.py: case": 70,
}
ARGUMENTS = {
    "kernels/tawin_kernels/ops/loss/reference.py: _group_loss": 12,
    "tawin/train/loop.py: __init__": 11,
    "tawin/rl/rollout.py: roll_out": 12,
    "tawin/catalog/catalog.py: load_catalog": 11,  # public
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """All but Triton's, whose every pointer and stride is an argument."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not any("jit" in ast.unparse(one) for one in node.decorator_list):
                yield f"{name_of(path)}: {node.name}", node


def test_nothing_imports_upwards() -> None:
    pytest.importorskip("importlinter")
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


def test_a_folder_has_at_most_twelve_modules() -> None:
    counts = Counter(name_of(path.parent) for path in MODULES if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_a_module_fits_in_the_head() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES.get(name, MOST_LINES)} == {}
    assert not [name for name in MODULE_LINES if lines.get(name, 0) <= MOST_LINES], "no exception any more"


def test_a_function_fits_on_a_screen() -> None:
    def lines(node: ast.FunctionDef) -> int:
        docstring = node.body[0] if ast.get_docstring(node) else None
        documented = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
        assert node.end_lineno is not None
        return node.end_lineno - node.lineno + 1 - documented

    found = {name: lines(node) for name, node in functions()}
    assert {name: count for name, count in found.items() if count > FUNCTION_LINES.get(name, MOST_FUNCTION_LINES)} == {}
    assert not [name for name in FUNCTION_LINES if found.get(name, 0) <= MOST_FUNCTION_LINES], "no exception any more"


def test_an_internal_function_has_at_most_ten_arguments() -> None:
    """Public ops have as many as their contract says, and their checks as many."""
    public = ("kernels/tawin_kernels/checks.py", "kernels/tawin_kernels/ops")
    found = {
        name: len(node.args.args) + len(node.args.kwonlyargs)
        for name, node in functions()
        if not name.startswith(public) or ": _" in name
    }
    kept = {name: count for name, count in found.items() if name.startswith(("tawin", "kernels"))}
    assert {name: count for name, count in kept.items() if count > ARGUMENTS.get(name, MOST_ARGUMENTS)} == {}


def options(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{name}" for name in options(value))
        else:
            yield field.name


def test_a_run_has_no_more_options_than_these() -> None:
    assert len(list(options(Config()))) <= MOST_OPTIONS


def test_the_choices_of_a_literal_stand_in_one_place() -> None:
    found: Counter[tuple[str, ...]] = Counter()
    for path in MODULES:
        if not name_of(path).startswith(("tawin", "kernels")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                found[tuple(sorted(ast.unparse(node.slice).strip("()").split(", ")))] += 1
    assert {choices: count for choices, count in found.items() if count > 1} == {}


def test_no_test_imports_another() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("tests")):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                # What hypothesis or a maker gives is no module; a module of tests is named test_<source>.
                modules = {f"{name}.py" for name in names if name.startswith("test_")}
                if modules & {one.name for one in (ROOT / "tests").rglob("test_*.py")}:
                    found.append(f"{name_of(path)}:{node.lineno}")
    assert found == []


def test_what_is_committed_weighs_little() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout of git")
    kinds = (".parquet", ".png", ".npz", ".gz", ".safetensors", ".pdf", ".jpg")
    files = [ROOT / name for name in listed.stdout.split("\0") if name.endswith(kinds)]
    sizes = {name_of(path): path.stat().st_size for path in files if path.is_file()}
    assert {name: size for name, size in sizes.items() if size > MOST_BINARY} == {}
    assert sum(sizes.values()) <= MOST_BINARIES
