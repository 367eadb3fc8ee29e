"""Tables: every row of those that are shipped can be run; sweeps and options merge as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.methods import check
from experiments.plan import TRAINED, cells, load_table, merge, table_names
from experiments.workspace import Workspace

TABLE = """
title: A table
base: base.yaml
data: [office, toys]
options: {grpo: {steps: 5}}
data_options: {toys: {grpo: {steps: 9}}}
baseline: Plain
rows:
  - {name: Plain, method: grpo, options: {grpo: {tawin: {enabled: false}}}}
  - {name: "Anchor {}, window {}", method: grpo, data: [office], sweep: {grpo.tawin.anchor: [0.0, 1.0], grpo.tawin.window: [1.0, 3.0]}}
  - {name: SASRec, method: sasrec, options: {epochs: 2}}
"""  # noqa: E501
BASE = "options: {grpo: {steps: 3, batch_size: 8}}\ndata_options: {office: {evaluation: {beam_width: 10}}}\n"


def written(folder: Path, text: str = TABLE) -> str:
    (folder / "base.yaml").write_text(BASE)
    (folder / "some.yaml").write_text(text)
    return str(folder / "some.yaml")


@pytest.mark.parametrize("name", table_names())
def test_every_row_of_a_shipped_table_passes_the_check_before_a_run(name: str) -> None:
    workspace = Workspace(Path("data"), Path("out"))
    for cell in cells(load_table(name), [0]):
        check(cell, workspace)
        if cell.row.method in TRAINED:
            config = workspace.config(cell)
            assert config.seed == 0
            assert (config.data is None) == (cell.data == "synthetic")


def test_options_of_base_table_data_set_and_row_lie_on_top_of_each_other(tmp_path: Path) -> None:
    table = load_table(written(tmp_path))
    found = {(cell.data, cell.row.name, cell.seed): cell for cell in cells(table, [0, 1])}
    assert len(found) == 2 * (2 + 4 + 2)
    assert [seed for _, _, seed in found] == [0] * 8 + [1] * 8  # a whole table of one seed first
    swept = found["office", "Anchor 1.0, window 3.0", 1]
    assert swept.options == {
        "grpo": {"steps": 5, "batch_size": 8, "tawin": {"anchor": 1.0, "window": 3.0}},
        "evaluation": {"beam_width": 10},
    }
    assert swept.row.swept == {"grpo.tawin.anchor": 1.0, "grpo.tawin.window": 3.0}
    assert found["toys", "Plain", 0].options == {"grpo": {"steps": 9, "batch_size": 8, "tawin": {"enabled": False}}}
    # The trainer's options are none of its, but it is evaluated as all rows are.
    assert found["toys", "SASRec", 0].options == {"epochs": 2}
    assert found["office", "SASRec", 0].options == {"epochs": 2, "evaluation": {"beam_width": 10}}
    assert ("toys", "Anchor 1.0, window 3.0", 0) not in found
    assert {cell.data for cell in cells(table, [0], ["toys"])} == {"toys"}


def test_merging_changes_neither() -> None:
    first, second = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(first, second) == {"a": {"b": 1, "c": 2}}
    assert (first, second) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A table", "name: A table", r"got unknown \['name'\], missing \['title'\]"),
        ("method: sasrec", "kind: sasrec", r"got unknown \['kind'\], missing \['method'\]"),
        ("name: SASRec", "name: Plain", "expected distinct names, got 'Plain' twice"),
        ("[office, toys]", "[office, games]", r"expected data sets among .*, got \['games'\]"),
        ("baseline: Plain", "baseline: Fancy", "baseline: expected one of the rows .*, got 'Fancy'"),
        ("base: base.yaml", "base: none.yaml", "none.yaml: expected a table in YAML"),
    ],
)
def test_a_table_that_cannot_be_run_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_table(written(tmp_path, TABLE.replace(old, new)))


def test_a_table_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"table: expected one of \[.*'main'.*\] or a YAML file, got 'mian'"):
        load_table("mian")
