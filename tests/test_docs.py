"""What README and docs/ say is so: their Python runs, links lead somewhere, messages exist, tables agree."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from statistics import median
from typing import get_args

import pytest
from tawin_kernels.ops.loss.types import LossType

from experiments import readme
from experiments.store import read_records
from tawin.serve.export import export

from .docs_pages import PAGES, ROOT, STORIES, Snippet, snippets
from .tawin.runs import make_run

GENERATED = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md")}


STEP = "bench/results/training-step-amd-epyc-2026-11-24T192830Z.json"

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


def test_every_page_stands_in_the_order_of_the_documentation() -> None:
    assert "](docs/README.md)" in PAGES["README.md"]
    for page in (*PAGES, *GENERATED):
        if page not in ("README.md", "docs/README.md"):
            assert f"]({page.removeprefix('docs/')})" in PAGES["docs/README.md"], (
                f"docs/README.md has no link to {page}"
            )


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 120
    assert len(PAGES["README.md"].split()) <= 1100


def test_the_readmes_results_are_those_of_the_records() -> None:
    records = [record for name in readme.TOKENS for record in read_records(readme.RESULTS / f"{name}.parquet")]
    assert readme.with_table(PAGES["README.md"], readme.table(records)) == PAGES["README.md"], (
        "python -m experiments.readme writes them anew"
    )


def test_the_readmes_figure_has_the_seconds_that_were_measured() -> None:
    cases = json.loads((ROOT / STEP).read_text(encoding="utf-8"))["cases"]
    for name, ways in (("instruction", ("rere", "shared_prefix", "ours")), ("bare", ())):
        (case,) = (case for case in cases if case["case"] == name)
        seconds = {way["way"]: median(way["seconds"]) for way in case["ways"]}
        for way in ways:
            for theme in ("light", "dark"):
                figure = (ROOT / f"docs/figures/step-{theme}.svg").read_text(encoding="utf-8")
                assert f"{seconds[way]:.2f} s" in figure and f"{seconds[way]:.2f}" in PAGES["README.md"]
    assert (
        f"{seconds['rere'] / seconds['ours']:.1f} and {seconds['shared_prefix'] / seconds['ours']:.1f} times"
        in (PAGES["README.md"])
    )


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_files_that_are_named_exist(page: str) -> None:
    for module in re.findall(r"python -m ((?:bench|experiments|tawin)[\w.]*\w)", PAGES[page]):
        assert importlib.util.find_spec(module), f"{page}: python -m {module}"
    for file in re.findall(r"`((?:bench|docs|experiments|tawin|tests)/[\w./-]+\.\w+)`", PAGES[page]):
        assert (ROOT / file).exists(), f"{page}: {file}"


@pytest.mark.parametrize("page", sorted({*PAGES} - {"docs/LOG.md"}))  # the log keeps options that are gone
def test_options_that_prose_names_exist(page: str) -> None:
    known = set(re.findall(r"--[a-z][\w.-]*", GENERATED["docs/api/options.md"]))
    for option in re.findall(r"--[a-z]+\.[a-z][\w.-]*\w", PAGES[page]):
        assert option in known or option.replace(".no-", ".") in known, f"{page}: {option}"


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


def test_the_readmes_table_of_the_field_is_that_of_the_comparison() -> None:
    tables = [
        PAGES[page].split("<!-- field begin -->")[1].split("<!-- field end -->")[0]
        for page in ("README.md", "docs/COMPARISON.md")
    ]
    assert tables[0] == tables[1]
    assert len(table_rows(tables[0])) > 8


def test_the_losses_that_the_comparison_counts_are_those_that_there_are() -> None:
    losses = get_args(LossType)
    row = next(row for row in table_rows(PAGES["docs/COMPARISON.md"]) if row.startswith("| Group losses"))
    assert row.endswith(f"| {len(losses)} |")
    assert f"tawin: {', '.join(losses)}; clipped" in " ".join(PAGES["docs/COMPARISON.md"].split())
