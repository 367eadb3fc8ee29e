"""Files of scores and of vectors: against the functions that make them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin import cli
from tawin.evaluate.candidates import score_candidates
from tawin.evaluate.vectors import item_vectors, user_vectors
from tawin.serve.load import Serving, load_serving

from ..runs import make_run

UNKNOWN = 999


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("score") / "run").path


@pytest.fixture(scope="module")
def serving(run: Path) -> Serving:
    return load_serving(run)


def write(path: Path, lists: list[list[int]]) -> Path:
    users = [f"u{number}" for number in range(len(lists))]
    pq.write_table(pa.table({"user_id": users, "item_ids": pa.array(lists, pa.list_(pa.int64()))}), path)
    return path


def test_each_candidate_has_its_exact_score_in_its_own_order(
    run: Path, serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = serving.catalog.item_ids
    rows = [[1, 2, 3, 4, 5], [7], [9, 8]] * 30  # 90 users, 64 a chunk
    histories = write(tmp_path / "h.parquet", [ids[row].tolist() for row in rows] + [[UNKNOWN]])
    wanted: list[list[int]] = [[30, 2], [], [5, 5, 39]] * 30
    given = [np.array(row, dtype=np.int64) for row in wanted]
    lists = [[*ids[row].tolist(), UNKNOWN] for row in given] + [ids[[1]].tolist()]
    candidates = write(tmp_path / "c.parquet", lists)
    arguments = ["score", str(run), "--histories", str(histories), "--candidates"]
    cli.main([*arguments, str(candidates), "--out", str(tmp_path / "out.parquet")])
    printed = capsys.readouterr().out
    assert "150 scores of 91 users" in printed and "90 candidates are not in the catalogue" in printed
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["item_ids"].to_pylist() == [ids[row].tolist() for row in given] + [[]]
    shown = [np.array(row[-4:]) for row in rows]
    expected = score_candidates(serving.model, serving.catalog, shown, given)
    np.testing.assert_allclose(np.concatenate(out["scores"].to_pylist()), np.concatenate(expected), atol=2e-4)

    one = write(tmp_path / "one.parquet", [ids[[4, 30]].tolist()])
    cli.main([*arguments, str(one), "--out", str(tmp_path / "all.parquet")])
    lists = pq.read_table(tmp_path / "all.parquet")["item_ids"].to_pylist()
    assert lists == [ids[[4, 30]].tolist()] * 90 + [[]]

    few = write(tmp_path / "few.parquet", [[1], [2]])
    with pytest.raises(SystemExit, match=r"expected a row for each of the 91 .*, or one for all, got 2"):
        cli.main([*arguments, str(few), "--out", str(tmp_path / "no.parquet")])
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(candidates).take(np.arange(90, -1, -1)), other)
    with pytest.raises(SystemExit, match=r"expected the users of .* in their order, 'u0', got 'u90'"):
        cli.main([*arguments, str(other), "--out", str(tmp_path / "no.parquet")])
    assert not (tmp_path / "no.parquet").exists()


def test_vectors_are_files_of_both_kinds(run: Path, serving: Serving, tmp_path: Path) -> None:
    ids = serving.catalog.item_ids
    histories = write(tmp_path / "h.parquet", [ids[[1, 2, 3, 4, 5]].tolist(), [UNKNOWN]])
    for suffix in ("npy", "parquet"):
        places = ["--items", str(tmp_path / f"i.{suffix}"), "--users", str(tmp_path / f"u.{suffix}")]
        cli.main(["vectors", str(run), *places, "--histories", str(histories)])
    items = item_vectors(serving.model, serving.catalog)
    np.testing.assert_allclose(np.load(tmp_path / "i.npy"), items, atol=1e-4)
    user = user_vectors(serving.model, serving.catalog, [np.array([2, 3, 4, 5])])
    np.testing.assert_allclose(np.load(tmp_path / "u.npy"), [user[0], np.zeros_like(user[0])], atol=1e-4)
    table = pq.read_table(tmp_path / "i.parquet")
    assert table["item_id"].to_pylist() == ids.tolist()
    assert table["vector"].to_pylist() == np.load(tmp_path / "i.npy").tolist()
    table = pq.read_table(tmp_path / "u.parquet")
    assert table["user_id"].to_pylist() == ["u0", "u1"]
    assert table["vector"].to_pylist() == np.load(tmp_path / "u.npy").tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--items, --users: expected at least one of them"),
        (["--users", "u.npy"], "--users, --histories: expected both or none"),
        (["--items", "i.csv"], r"--items i.csv: expected a name that ends in .parquet or .npy"),
    ],
)
def test_places_for_vectors_are_checked_first(run: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.main(["vectors", str(run), *arguments])
