"""The report of a table: its files, and the marked part of a document."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.report import split_document, write_report
from experiments.store import Record
from experiments.theory import recall_bounds

from .made_records import record, sweep, table
from .theory.small_options import RECALL_BOUNDS

BEGIN, END = "<!-- table main begin -->", "<!-- table main end -->"
FIGURES = (
    {"kind": "rows", "metric": "recall@3"},
    {"kind": "sweep", "option": "grpo.tawin.anchor", "metrics": ["recall@3"], "caption": "Own words."},
    {"kind": "series", "series": "never logged"},
)
TABLE = table("beam", *sweep("grpo.tawin.anchor", 0, 2), baseline="beam", metrics=("recall@3",), figures=FIGURES)
RECORDS = [record(row.name, seed, [0, 1, 5, -1]) for row in TABLE.rows for seed in (0, 1)]


def test_a_report_is_markdown_and_figures(tmp_path):
    paths = write_report(TABLE, RECORDS, tmp_path / "results", document=None)
    assert [path.name for path in paths] == ["main.md", "main-rows-recall-3.png", "main-sweep-anchor.png"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(path.name for path in paths)
    text = paths[0].read_text()
    assert text.startswith("# Main table\n\nWhat it asks.\n\n### office\n\n")
    assert "![main-sweep-anchor](main-sweep-anchor.png)\n\nOwn words.\n" in text
    for path in paths[1:]:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_records_give_the_same_bytes(tmp_path):
    first, second = (write_report(TABLE, RECORDS, tmp_path / name, document=None) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_records_of_other_tables_are_left_alone(tmp_path):
    other = [dataclasses.replace(each, table="other", row="stranger") for each in RECORDS]
    (page,) = write_report(TABLE, other, tmp_path, document=None)
    assert "No cell of `main` has been run." in page.read_text()


def test_a_document_is_filled_in_between_its_marks_and_stays_to_the_byte_elsewhere(tmp_path):
    document = tmp_path / "docs" / "EXPERIMENTS.md"
    document.parent.mkdir()
    before, after = (
        b"# Experiments\r\n\r\nWords \xc2\xb1\n",
        b"\n\n<!-- table other begin -->\n<!-- table other end -->",
    )
    document.write_bytes(before + BEGIN.encode() + b"\nold\n" + END.encode() + after)
    paths = write_report(TABLE, RECORDS, tmp_path / "results", document=document)
    assert paths[-1] == document
    found = document.read_bytes()
    assert found.startswith(before + BEGIN.encode() + b"\n\n### office\n\n")
    assert found.endswith(b"\n\n" + END.encode() + after)
    assert b"old" not in found
    assert b"](../results/main-rows-recall-3.png)" in found
    write_report(TABLE, RECORDS, tmp_path / "results", document=document)
    assert document.read_bytes() == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"words {END}", "expected <!-- table main begin --> once .* 0 times"),
        (f"{BEGIN} words", "expected <!-- table main end --> once .* 0 times"),
        (f"{BEGIN}{END}{BEGIN}{END}", "main begin --> once .* 2 times"),
        (f"{END}{BEGIN}", "begin --> before .*found it after"),
        (f"{BEGIN}<!-- table other begin -->{END}", "no other table between .*<!-- table other begin -->"),
        (None, "found no file"),
    ],
)
def test_a_document_without_its_two_marks_is_refused_and_nothing_is_written(tmp_path, text, message):
    document = tmp_path / "EXPERIMENTS.md"
    if text is not None:
        document.write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(TABLE, RECORDS, tmp_path / "results", document=document)
    assert not (tmp_path / "results").exists()
    assert text is None or document.read_text() == text


def test_a_document_is_split_at_its_marks(tmp_path):
    document = tmp_path / "EXPERIMENTS.md"
    document.write_text(f"a{BEGIN}b{END}c")
    assert split_document(document, "main") == (f"a{BEGIN}", f"{END}c")


def test_a_figure_of_theory_is_drawn_from_its_rows_series_once_there_is_one(tmp_path):
    row = "recall_bounds: small"
    made = table(row, metrics=(), figures=({"kind": "theory", "name": row},))
    assert len(write_report(made, [], tmp_path, document=None)) == 1
    values, series = recall_bounds.run(RECALL_BOUNDS, 0)
    records = [Record("main", "office", row, 0, {}, values, series=series)]
    page, figure = write_report(made, records, tmp_path, document=None)
    assert figure.name == "main-theory-recall-bounds-small.png"
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"| {row} | {next(iter(values))} | " in page.read_text()
    with pytest.raises(ValueError, match="row of table 'main', got 'stranger'"):
        write_report(
            dataclasses.replace(made, figures=({"kind": "theory", "name": "stranger"},)), [], tmp_path, document=None
        )


def test_two_figures_of_one_name_are_refused(tmp_path):
    twice = dataclasses.replace(TABLE, figures=FIGURES[:1] * 2)
    with pytest.raises(ValueError, match=r"main-rows-recall-3\.png twice"):
        write_report(twice, RECORDS, tmp_path, document=None)


def test_a_figure_that_fails_leaves_the_one_before_and_no_part(tmp_path):
    old = tmp_path / "main-rows-recall-3.png"
    old.write_bytes(b"old")
    broken = dataclasses.replace(TABLE, figures=({"kind": "rows", "metric": "recall@3", "rows": ["stranger"]},))
    with pytest.raises(ValueError, match="stranger"):
        write_report(broken, RECORDS, tmp_path, document=None)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"
