"""The report of a table: its files."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.report import write_report
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
    paths = write_report(TABLE, RECORDS, tmp_path / "results")
    assert [path.name for path in paths] == ["main.md", "main-rows-recall-3.png", "main-sweep-anchor.png"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(path.name for path in paths)
    text = paths[0].read_text()
    assert text.startswith("# Main table\n\nWhat it asks.\n\n### office\n\n")
    assert "![main-sweep-anchor](main-sweep-anchor.png)\n\nOwn words.\n" in text
    for path in paths[1:]:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_records_give_the_same_bytes(tmp_path):
    first, second = (write_report(TABLE, RECORDS, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_records_of_other_tables_are_left_alone(tmp_path):
    other = [dataclasses.replace(each, table="other", row="stranger") for each in RECORDS]
    (page,) = write_report(TABLE, other, tmp_path)
    assert "No cell of `main` has been run." in page.read_text()


def test_a_figure_of_theory_is_drawn_from_its_rows_series_once_there_is_one(tmp_path):
    row = "recall_bounds: small"
    made = table(row, metrics=(), figures=({"kind": "theory", "name": row},))
    assert len(write_report(made, [], tmp_path)) == 1
    values, series = recall_bounds.run(RECALL_BOUNDS, 0)
    records = [Record("main", "office", row, 0, {}, values, series=series)]
    page, figure = write_report(made, records, tmp_path)
    assert figure.name == "main-theory-recall-bounds-small.png"
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert f"| {row} | {next(iter(values))} | " in page.read_text()
    with pytest.raises(ValueError, match="row of table 'main', got 'stranger'"):
        write_report(dataclasses.replace(made, figures=({"kind": "theory", "name": "stranger"},)), [], tmp_path)


def test_two_figures_of_one_name_are_refused(tmp_path):
    twice = dataclasses.replace(TABLE, figures=FIGURES[:1] * 2)
    with pytest.raises(ValueError, match=r"main-rows-recall-3\.png twice"):
        write_report(twice, RECORDS, tmp_path)


def test_a_figure_that_fails_leaves_the_one_before_and_no_part(tmp_path):
    old = tmp_path / "main-rows-recall-3.png"
    old.write_bytes(b"old")
    broken = dataclasses.replace(TABLE, figures=({"kind": "rows", "metric": "recall@3", "rows": ["stranger"]},))
    with pytest.raises(ValueError, match="stranger"):
        write_report(broken, RECORDS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"
