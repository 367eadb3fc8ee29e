"""The runner, end to end on a small synthetic table: cells, resuming, adding seeds, several processes, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import methods, run
from experiments.store import read_records, write_records

ROOT = Path(__file__).parents[2]
TABLE = """
title: A small table
data: [synthetic]
options:
  synthetic: {num_users: 120, num_items: 40, num_clusters: 5}
  policy: {hidden_size: 16, layers: 1, heads: 2, intermediate_size: 32, hidden_dropout: 0.1}
  sft: {epochs: 2, batch_size: 32}
  grpo: {steps: 3, batch_size: 16, group_size: 4, evaluate_every: 2}
  evaluation: {beam_width: 10}
baseline: Beam
rows:
  - {name: SFT, method: sft}
  - {name: Beam, method: grpo, options: {grpo: {tawin: {enabled: false}}}}
  - {name: "Anchor {}", method: grpo, sweep: {grpo.tawin.anchor: [0.0, 1.0]}}
  - {name: S-DPO, method: sdpo, options: {sdpo: {steps: 2, batch_size: 16}}}
figures:
  - {kind: sweep, option: grpo.tawin.anchor, metrics: [recall@3], reference: [SFT]}
"""


def arguments(folder: Path, *more: str) -> list[str]:
    (folder / "small.yaml").write_text(TABLE)
    places = ["--out", str(folder / "out"), "--results", str(folder / "results")]
    return [str(folder / "small.yaml"), *places, *more]


def test_a_table_is_run_resumed_and_grown_by_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.main(arguments(tmp_path, "--seeds", "0", "--rows", "SFT", "Be*")) == 0
    kept = tmp_path / "results" / "small.parquet"
    first = {record.key: record for record in read_records(kept)}
    assert [key[2:] for key in first] == [("Beam", 0), ("SFT", 0)]
    for record in first.values():
        assert record.ranks["test"].shape == record.ranks["valid"].shape == (120,)
        found = record.ranks["test"]
        assert record.values["test recall@10"] == pytest.approx(float(((found >= 0) & (found < 10)).mean()))
    cells = {record.row: record for record in read_records(tmp_path / "out" / "records" / "small")}
    assert cells["Beam"].series["step"] == [1.0, 2.0, 3.0]
    assert first["small", "synthetic", "Beam", 0].series == {}  # no figure of the table draws a curve
    starts = list((tmp_path / "out" / "starts").iterdir())
    assert len(starts) == 1  # both rows stand on one SFT

    ran = []
    monkeypatch.setattr(
        run, "run_cell", lambda cell, work: (ran.append(cell.row.name), methods.run_cell(cell, work))[1]
    )
    assert run.main(arguments(tmp_path, "--seeds", "0", "1")) == 0
    assert sorted(ran) == ["Anchor 0.0", "Anchor 0.0", "Anchor 1.0", "Anchor 1.0", "Beam", "S-DPO", "S-DPO", "SFT"]
    records = {record.key: record for record in read_records(kept)}
    assert len(records) == 10
    assert records["small", "synthetic", "SFT", 0].finished_at == first["small", "synthetic", "SFT", 0].finished_at
    assert "Anchor 1.0" in (tmp_path / "results" / "small.md").read_text()
    assert list((tmp_path / "results").glob("small-*.png"))
    # Another seed has a start of its own.
    assert list(records["small", "synthetic", "SFT", 0].ranks["test"]) != list(
        records["small", "synthetic", "SFT", 1].ranks["test"]
    )


def test_a_table_keeps_the_curves_that_its_figures_draw(tmp_path: Path) -> None:
    figure = "  - {kind: series, series: valid recall@3, x: valid step}"
    given = arguments(tmp_path, "--seeds", "0", "--rows", "Beam")
    (tmp_path / "small.yaml").write_text(TABLE + figure + "\n")
    assert run.main(given) == 0
    (record,) = read_records(tmp_path / "results" / "small.parquet")
    assert record.series.keys() == {"valid recall@3", "valid step"}
    assert list((tmp_path / "results").glob("small-series-*.png"))


def test_what_needs_no_training_is_a_row(tmp_path: Path) -> None:
    untrained = "\n".join(f"  - {{name: {name}, method: {name}}}" for name in ("popularity", "counts", "item_knn"))
    table = TABLE.replace("rows:\n", f"rows:\n{untrained}\n")
    options = arguments(tmp_path, "--seeds", "0", "--rows", "popularity", "counts", "item_knn")
    (tmp_path / "small.yaml").write_text(table)
    assert run.main(options) == 0
    records = {(record.row, record.seed): record for record in read_records(tmp_path / "results" / "small.parquet")}
    for name in ("popularity", "counts", "item_knn"):
        assert records[name, 0].ranks["test"].shape == (4000,)  # the data's own size: rows of this kind take no options
    assert records["counts", 0].values["test recall@10"] > records["popularity", 0].values["test recall@10"]


def test_a_record_tells_what_rl_did_to_its_own_prompts(tmp_path: Path) -> None:
    assert run.main(arguments(tmp_path, "--seeds", "0", "--rows", "SFT", "Beam", "S-DPO")) == 0
    records = {record.row: record for record in read_records(tmp_path / "out" / "records" / "small")}
    for row in ("Beam", "S-DPO"):
        values, curves = records[row].values, records[row].series
        for k in (1, 3, 5):
            assert values[f"train recall@{k} at the start"] == records["SFT"].values[f"train recall@{k}"]
            assert values[f"valid recall@{k} at the end"] == curves[f"valid recall@{k}"][-1]
            assert 0.0 <= values[f"train recall@{k}"] <= 1.0
        assert {"train recall@3 at the end", "test recall@3 at the end"} <= values.keys()
    assert not any("with counts" in name for name in records["SFT"].values)  # semantic ids are not mixed with counts


def test_a_row_of_the_model_alone_tells_what_counts_add(tmp_path: Path) -> None:
    item = TABLE.replace("options:\n", "options:\n  catalog: {item_tokens: item}\n", 1).replace(
        "epochs: 2", "epochs: 1"
    )
    found = {}  # after one epoch there is one checkpoint to choose
    for name, weight in (("alone", 0.0), ("mixed", None)):
        folder = tmp_path / name
        folder.mkdir()
        given = arguments(folder, "--seeds", "0", "--rows", "SFT")
        text = item.replace("beam_width: 10", f"beam_width: 10, counts_weight: {'null' if weight is None else weight}")
        (folder / "small.yaml").write_text(text)
        assert run.main(given) == 0
        (record,) = read_records(folder / "results" / "small.parquet")
        found[name] = record.values
    for metric in ("valid recall@3", "test recall@1", "test recall@5"):
        assert found["alone"][f"{metric} with counts"] == found["mixed"][metric]
    assert found["alone"]["test recall@5"] != found["mixed"]["test recall@5"]
    assert found["alone"]["train recall@5"] == found["mixed"]["train recall@5"]  # counts know these targets


def test_rows_that_differ_in_what_rl_asks_for_share_a_start(tmp_path: Path) -> None:
    given = arguments(tmp_path, "--seeds", "0", "--rows", "Beam")
    for prompts in ("last", "all"):
        (tmp_path / "small.yaml").write_text(
            TABLE.replace("options:\n", f"options:\n  split: {{rl_prompts: {prompts}}}\n", 1)
        )
        assert run.main(given) == 0
    assert len(list((tmp_path / "out" / "starts").iterdir())) == 1
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


def test_two_processes_share_the_cells_and_find_what_one_finds(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, jobs in ((alone, "1"), (together, "2")):
        folder.mkdir()
        command = [sys.executable, "-m", "experiments.run", *arguments(folder, "--seeds", "0", "--jobs", jobs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    one, two = (read_records(folder / "results" / "small.parquet") for folder in (alone, together))
    assert [record.key for record in one] == [record.key for record in two]
    assert len(one) == 5
    for a, b in zip(one, two, strict=True):
        assert a.values == b.values
        assert a.ranks["test"].tolist() == b.ranks["test"].tolist()


def test_a_cell_that_fails_leaves_the_others_and_shows_in_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(cell: object, workspace: object) -> object:
        raise FloatingPointError("the gradient norm is nan")

    monkeypatch.setitem(methods.METHODS, "grpo", fails)
    assert run.main(arguments(tmp_path, "--seeds", "0", "--rows", "SFT", "Beam")) == 1
    assert [record.row for record in read_records(tmp_path / "results" / "small.parquet")] == ["SFT"]
    assert "synthetic, Beam, seed 0: FAILED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--seeds", "-1"], "--seeds: expected numbers from 0 on"),
        (["--only", "toys"], r"--only: expected data sets among \('synthetic',\), got \['toys'\]"),
        (["--rows", "Beams"], r"--rows: expected some of \['SFT', 'Beam'.*\], got \('Beams',\)"),
    ],
)
def test_options_that_name_nothing_are_refused(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        run.main(arguments(tmp_path, *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sdpo: {steps: 2", "sdpo: {stepps: 2", "small: S-DPO: .*stepps"),
        ("grpo: {steps: 3", "grpo: {stepps: 3", "small: SFT: unknown option 'grpo.stepps'"),
        ("method: sft", "method: theory.nothing", r"small: SFT: No module named 'experiments.theory.nothing'"),
        ("method: sft", "method: theory.rankings", "small: SFT: .*rankings.* has no attribute 'Options'"),
        ("method: sft", "method: nothing", r"small: SFT: expected a method among .*, got 'nothing'"),
        ("method: sft}", "method: theory.correlation, options: {user: 3}}", "small: SFT: options: expected .*'user'"),
        ("method: sft}", "method: sft, options: {exact: {user: 3}}}", r"small: SFT: exact: expected \{users: N\}"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused_before_anything_runs(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    given = arguments(tmp_path)
    (tmp_path / "small.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(SystemExit, match=message):
        run.main(given)
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    places = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    with pytest.raises(
        SystemExit, match="--data: expected the folder that holds industrial, office, toys, yelp, got none"
    ):
        run.main(["main", *places])
    with pytest.raises(SystemExit, match=r"expected a folder 'industrial' in it, found none"):
        run.main(["main", "--data", str(tmp_path), *places])


def test_the_report_alone_needs_finished_cells(tmp_path: Path) -> None:
    assert run.main(arguments(tmp_path, "--report-only")) == 1


def test_seeds_that_were_run_with_other_options_leave_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only_sft = arguments(tmp_path, "--rows", "SFT")
    assert run.main([*only_sft, "--seeds", "0", "1"]) == 0
    first = {record.seed: record for record in read_records(tmp_path / "results" / "small.parquet")}
    (tmp_path / "small.yaml").write_text(TABLE.replace("epochs: 2", "epochs: 1"))
    assert run.main([*only_sft, "--seeds", "1"]) == 0
    (found,) = read_records(tmp_path / "results" / "small.parquet")
    assert found.seed == 1 and found.settings["sft"]["epochs"] == 1
    assert "left out, as its options were others: synthetic, SFT, seed 0" in capsys.readouterr().out
    # What was run is not lost: with the old options it comes back without being run again.
    (tmp_path / "small.yaml").write_text(TABLE)
    assert run.main([*only_sft, "--seeds", "0", "1"]) == 0
    again = {record.seed: record for record in read_records(tmp_path / "results" / "small.parquet")}
    assert {seed: record.finished_at for seed, record in again.items()} == {
        seed: record.finished_at for seed, record in first.items()
    }


def test_seeds_from_before_an_option_existed_stay_while_it_is_at_its_default(tmp_path: Path) -> None:
    only_sft = arguments(tmp_path, "--rows", "SFT")
    kept = tmp_path / "results" / "small.parquet"
    assert run.main([*only_sft, "--seeds", "0"]) == 0
    (record,) = read_records(kept)
    del record.settings["guards"], record.settings["sft"]["weight_decay"]
    write_records([record], kept)
    assert run.main([*only_sft, "--seeds", "1"]) == 0
    assert [found.seed for found in read_records(kept)] == [0, 1]
    (tmp_path / "small.yaml").write_text(TABLE.replace("epochs: 2", "epochs: 2, weight_decay: 0.25"))
    assert run.main([*only_sft, "--seeds", "1"]) == 0
    assert [found.seed for found in read_records(kept)] == [1]
