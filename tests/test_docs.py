"""What README and docs/ say is so: their Python runs, links lead somewhere, messages exist, tables agree."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest
from tawin_kernels.ops.loss.types import LossType

from tawin.serve.export import export

from .docs_pages import PAGES, ROOT, STORIES, Snippet, snippets
from .tawin.runs import make_run

GENERATED = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md")}


ON_THEIR_OWN = [each for page in PAGES if page not in STORIES for each in snippets(page)]
"""tests/test_docs_commands.py runs the others."""


@pytest.mark.parametrize("snippet", ON_THEIR_OWN, ids=str)
def test_a_python_snippet_runs(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if snippet.page == "docs/SERVING.md":  # whose code runs from inside an exported folder
        export(make_run(tmp_path / "run"), tmp_path / "served")
        tmp_path = tmp_path / "served"
    monkeypatch.chdir(tmp_path)
    snippet.run()


def test_the_readme_and_the_method_have_snippets() -> None:
    assert len(snippets("README.md")) >= 1
    assert len(snippets("docs/METHOD.md")) >= 2


@pytest.mark.parametrize("page", [*PAGES, *GENERATED])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (PAGES | GENERATED)[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_readmes_index() -> None:
    for page in PAGES:
        if page != "README.md":
            assert f"]({page})" in PAGES["README.md"], f"README.md has no link to {page}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_files_that_are_named_exist(page: str) -> None:
    for module in re.findall(r"python -m ((?:bench|experiments|tawin)[\w.]*\w)", PAGES[page]):
        assert importlib.util.find_spec(module), f"{page}: python -m {module}"
    for file in re.findall(r"`((?:bench|docs|experiments|tawin|tests)/[\w./-]+\.\w+)`", PAGES[page]):
        assert (ROOT / file).exists(), f"{page}: {file}"


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """Every string of the sources, with … where an f-string has a value."""
    files = [ROOT / "train.py", *ROOT.glob("tawin/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    found = []
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


def test_the_messages_of_troubleshooting_are_ours(messages: list[str]) -> None:
    headings = re.findall(r"^### `(.+)`$", PAGES["docs/TROUBLESHOOTING.md"], re.MULTILINE)
    assert len(headings) > 20
    for heading in headings:
        assert any(heading in message for message in messages), f"no such message: {heading}"


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_readmes_table_of_features_is_that_of_the_comparison() -> None:
    feature_rows = [row for row in table_rows(PAGES["docs/COMPARISON.md"]) if row.count("|") == 7]
    assert len(feature_rows) > 10
    for row in feature_rows:
        assert row in PAGES["README.md"], f"not in README.md as it stands in docs/COMPARISON.md: {row}"


def test_the_losses_that_the_comparison_counts_are_those_that_there_are() -> None:
    losses = get_args(LossType)
    row = next(row for row in table_rows(PAGES["docs/COMPARISON.md"]) if row.startswith("| Group losses"))
    assert row.endswith(f"| {len(losses)} |")
    assert f"tawin: {', '.join(losses)}; clipped" in " ".join(PAGES["docs/COMPARISON.md"].split())
