"""Each script of examples/ runs as a user would run it, and prints that the policy got better."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 300  # a hang, and not a busy machine: the slowest takes some 15 s on a free core

# What a script prints: its first and last figure by this pattern are how good the policy was before and after.
FIGURES = {
    "raw_pytorch.py": r"bought by (\d+)%",
    "trl_grpo.py": r"(\d*\.\d+) (?:before|after)",
    "verl_loop.py": r"probability (\d+)%",
}
PRINTS_NOTHING = {"verl_reward.py"}
WITHOUT_A_POLICY = {"kernel_without_gpu.py"}  # tests/tools/ptx_machine/test_example.py runs it


def imports(script: Path) -> set[str]:
    """The top-level packages that a script imports."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def is_missing(package: str) -> bool:
    """Whether an example cannot import it. A mere folder of that name, which has no origin, is no package."""
    if (EXAMPLES / f"{package}.py").exists():
        return False
    spec = find_spec(package)
    return spec is None or (spec.origin is None and package in ("trl", "verl"))


@pytest.mark.parametrize(
    "script",
    sorted(script for script in EXAMPLES.glob("*.py") if script.name not in WITHOUT_A_POLICY),
    ids=lambda script: script.name,
)
def test_an_example_runs_and_its_policy_gets_better(script: Path, tmp_path: Path) -> None:
    missing = sorted(filter(is_missing, imports(script)))
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    completed = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the whole suite: small shapes, and a machine that may be busy
        capture_output=True,
        text=True,
        timeout=SECONDS,
        encoding="utf-8",
    )
    assert completed.returncode == 0, completed.stderr
    if script.name in PRINTS_NOTHING:
        assert completed.stdout == ""
        return
    assert script.name in FIGURES, "say in FIGURES what this example prints"
    figures = [float(figure) for figure in re.findall(FIGURES[script.name], completed.stdout)]
    assert len(figures) >= 2, completed.stdout
    assert figures[-1] > 2 * figures[0] + 0.1, completed.stdout


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda script: script.name)
def test_a_shell_script_is_one(script: Path) -> None:
    completed = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr


def test_the_raw_loop_has_40_lines_of_code_at_most_and_needs_torch_and_the_kernels_alone() -> None:
    script = EXAMPLES / "raw_pytorch.py"
    text = script.read_text(encoding="utf-8")
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in no_code]
    lines = {token.start[0] for token in tokens if not token.string.startswith('"""')}
    assert 20 < len(lines) <= 40, len(lines)
    assert imports(script) == {"torch", "tawin_kernels"}


@pytest.mark.slow  # a training of the preset, at its full size
def test_the_shop_of_own_csv_is_recommended_what_goes_with_its_tents(tmp_path: Path) -> None:
    done = subprocess.run(
        [EXAMPLES / "own_csv" / "run.sh", "--sft.epochs", "4", "--grpo.steps", "5"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ +1 │ +lamp-00 ", done.stdout), done.stdout[-2000:]


@pytest.mark.slow  # three minutes on two free cores
def test_the_notebook_of_the_demo_runs_and_rl_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "demo.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # committed without
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = json.loads((tmp_path / "RUN" / "results.json").read_text())
    assert results["grpo"]["test"]["recall@3"] > results["sft"]["test"]["recall@3"]
    (shown,) = (output["data"]["text/plain"] for output in notebook.cells[-2].outputs if "data" in output)
    assert len(ast.literal_eval(shown)) == 5
