"""A file of histories becomes a file of recommendations: the ones that single histories get, whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin import cli
from tawin.data.columns import DataError
from tawin.evaluate.ranking import recommend
from tawin.run.atomic import WriteError
from tawin.serve import recommend as recommend_file
from tawin.serve.load import Serving, load_serving

from ..runs import make_run

UNKNOWN = 999_999


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(scope="module")
def serving(run: Path) -> Serving:
    return load_serving(run)


def random_histories(serving: Serving, users: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.choice(serving.catalog.item_ids, draw.integers(1, 8)).tolist() for _ in range(users)]


def write(path: Path, histories: list[Any], **columns: Any) -> Path:
    table = pa.table({**columns, "item_ids": pa.array(histories, pa.list_(pa.int64()))})
    pq.write_table(table, path, row_group_size=7)
    return path


def test_every_user_gets_what_the_history_alone_gets(serving: Serving, tmp_path: Path) -> None:
    histories = random_histories(serving, 70)  # chunks of 64, row groups of 7
    users = [f"user {number}" for number in range(70)]
    path = write(tmp_path / "histories.parquet", histories, user_id=users)
    served = recommend_file.recommend_file(serving, path, tmp_path / "new" / "out.parquet", top=5, titles=True)
    assert (served.users, served.unknown_items, served.empty_histories) == (70, 0, 0) and served.seconds > 0
    out = pq.read_table(tmp_path / "new" / "out.parquet")
    assert out.column_names == ["user_id", "item_ids", "scores", "titles"]
    assert out["user_id"].to_pylist() == users
    catalog = serving.catalog
    for history, items, scores, titles in zip(
        histories, *(out[name].to_pylist() for name in ("item_ids", "scores", "titles")), strict=True
    ):
        recent = np.array([catalog.index_of(item) for item in history[-4:]])
        alone = recommend(serving.model, catalog, [recent], serving.options.evaluation)
        assert items == catalog.item_ids[alone.items[0, :5]].tolist()
        assert scores == pytest.approx(alone.scores[0, :5].tolist(), abs=2e-4)  # batches pad differently
        assert titles == [catalog.title(int(item)) for item in alone.items[0, :5]]


def test_unknown_items_are_left_out_and_counted_and_who_has_no_other_gets_an_empty_list(
    serving: Serving, tmp_path: Path
) -> None:
    known = serving.catalog.item_ids[[5, 2]].tolist()
    histories = [known, [UNKNOWN, known[0], -1, known[1]], [UNKNOWN, UNKNOWN], []]
    served = recommend_file.recommend_file(
        serving, write(tmp_path / "in.parquet", histories), tmp_path / "out.parquet", top=3
    )
    assert dataclasses.replace(served, seconds=0.0) == recommend_file.Served(4, 4, 2, 0)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["item_ids", "scores"]
    first, second, third, fourth = out["item_ids"].to_pylist()
    assert first == second and len(first) == 3
    assert third == fourth == [] == out["scores"].to_pylist()[2]


def test_a_null_is_no_item_and_a_null_history_an_empty_one(
    serving: Serving, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = serving.catalog.item_ids[[5, 2]].tolist()
    histories = write(tmp_path / "in.parquet", [known, None, [known[0], None, known[1]], []])
    cli.main(["recommend", str(run), "--histories", str(histories), "--out", str(tmp_path / "out.parquet")])
    printed = capsys.readouterr().out
    assert "1 items of histories are not" in printed and "2 users have no known item" in printed
    assert "note: the history of 1 of them is null" in printed
    first, second, third, fourth = pq.read_table(tmp_path / "out.parquet")["item_ids"].to_pylist()
    assert first == third and len(first) == 10 and second == fourth == []


def test_text_in_gives_text_out_and_a_csv_is_a_csv(serving: Serving, tmp_path: Path) -> None:
    histories = random_histories(serving, 9)
    recommend_file.recommend_file(serving, write(tmp_path / "in.parquet", histories), tmp_path / "numbers.parquet")
    numbers = pq.read_table(tmp_path / "numbers.parquet")["item_ids"].to_pylist()
    text = pa.table({"item_ids": [[str(item) for item in history] for history in histories]})
    pq.write_table(text, tmp_path / "text.parquet")
    recommend_file.recommend_file(serving, tmp_path / "text.parquet", tmp_path / "names.parquet")
    names = pq.read_table(tmp_path / "names.parquet")["item_ids"].to_pylist()
    assert names == [[str(item) for item in items] for items in numbers]
    recommend_file.recommend_file(serving, tmp_path / "in.parquet", tmp_path / "lists.csv", titles=True)
    with open(tmp_path / "lists.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "rank", "item_id", "score", "title"]
    assert [int(row["item_id"]) for row in rows] == [item for items in numbers for item in items]
    assert [int(row["row"]) for row in rows] == [row for row in range(9) for _ in range(10)]
    catalog = serving.catalog
    assert all(row["title"] == catalog.title(catalog.index_of(int(row["item_id"]))) for row in rows)


def test_histories_of_a_csv_stand_a_row_an_item(serving: Serving, tmp_path: Path) -> None:
    ids = serving.catalog.item_ids[:5].tolist()
    rows = [("b", ids[0]), ("a", ids[1]), ("b", ids[2]), ("a", ids[3]), ("b", ids[4]), ("c", UNKNOWN), ("d", "")]
    lines = "".join(f"x,{item},{user}\n" for user, item in rows)
    (tmp_path / "in.csv").write_text("kind,item_id,user_id\n" + lines)
    served = recommend_file.recommend_file(serving, tmp_path / "in.csv", tmp_path / "out.parquet", top=3)
    assert (served.users, served.unknown_items, served.empty_histories) == (4, 2, 2)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["user_id"].to_pylist() == ["b", "a", "c", "d"]
    write(tmp_path / "lists.parquet", [[ids[0], ids[2], ids[4]], [ids[1], ids[3]], [], []])
    recommend_file.recommend_file(serving, tmp_path / "lists.parquet", tmp_path / "expected.parquet", top=3)
    expected = pq.read_table(tmp_path / "expected.parquet")["item_ids"].to_pylist()
    assert [[int(item) for item in items] for items in out["item_ids"].to_pylist()] == expected
    (tmp_path / "bad.csv").write_text("user,item_id\n1,2\n")
    with pytest.raises(DataError, match="column 'user_id': expected user_id and item_id"):
        recommend_file.recommend_file(serving, tmp_path / "bad.csv", tmp_path / "no.parquet")


def test_more_items_than_the_catalogue_has_give_all_of_it(serving: Serving, tmp_path: Path) -> None:
    ids = serving.catalog.item_ids
    histories = write(tmp_path / "in.parquet", [ids[[0, 1]].tolist()])
    recommend_file.recommend_file(serving, histories, tmp_path / "out.parquet", top=60, exclude_history=True)
    (items,) = pq.read_table(tmp_path / "out.parquet")["item_ids"].to_pylist()
    assert sorted(items) == sorted(set(ids.tolist()) - set(ids[[0, 1]].tolist()))


def test_a_list_longer_than_the_catalogue_takes_no_more_than_the_catalogue(serving: Serving, tmp_path: Path) -> None:
    ids = serving.catalog.item_ids
    histories = write(tmp_path / "in.parquet", [[int(item)] for item in ids])
    recommend_file.recommend_file(serving, histories, tmp_path / "out.parquet", top=10**9)
    assert [len(items) for items in pq.read_table(tmp_path / "out.parquet")["item_ids"].to_pylist()] == [40] * 40


def test_what_the_prompt_has_no_room_for_is_excluded_too(serving: Serving, tmp_path: Path) -> None:
    ids = serving.catalog.item_ids
    history = ids[:20].tolist()  # of 40 items; a prompt has the last 4
    recommend_file.recommend_file(
        serving, write(tmp_path / "in.parquet", [history]), tmp_path / "out.parquet", top=40, exclude_history=True
    )
    (items,) = pq.read_table(tmp_path / "out.parquet")["item_ids"].to_pylist()
    assert sorted(items) == sorted(set(ids.tolist()) - set(history))


def test_the_command_excludes_what_the_prompt_has_no_room_for(
    run: Path, serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    history = ",".join(map(str, serving.catalog.item_ids[:20]))
    cli.main(["recommend", str(run), "--history", history, "--exclude-history", "--top", "40"])
    assert len(re.findall(r"^│ +\d+ │", capsys.readouterr().out, re.MULTILINE)) == 20


def test_an_empty_file_gives_an_empty_file(serving: Serving, tmp_path: Path) -> None:
    histories = write(tmp_path / "in.parquet", [])
    assert recommend_file.recommend_file(serving, histories, tmp_path / "out.parquet").users == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_failure_leaves_no_file(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fail_at_the_second(*arguments: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt
        return recommend(*arguments, **options)

    monkeypatch.setattr(recommend_file, "recommend", fail_at_the_second)
    histories = write(tmp_path / "in.parquet", random_histories(serving, 100))
    with pytest.raises(KeyboardInterrupt):
        recommend_file.recommend_file(serving, histories, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_a_write_that_fails_names_the_file_that_was_written_and_not_the_histories(
    serving: Serving, tmp_path: Path, limit_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    histories = write(tmp_path / "in.parquet", random_histories(serving, 30))
    with pytest.raises(WriteError, match=r"^/proc/out.parquet: could not be written: "):
        recommend_file.recommend_file(serving, histories, Path("/proc/out.parquet"))
    with (
        limit_files(100),
        pytest.raises(WriteError, match=rf"^{tmp_path}/out.parquet: could not be written: .*File too large"),
    ):
        recommend_file.recommend_file(serving, histories, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user_id": [1]}, "column 'item_ids': expected"),
        ({"item_ids": [1]}, "column 'item_ids': expected lists of ids, got int64"),
        ({"item_ids": [[1.5]]}, "column 'item_ids': expected lists of ids, got double"),
        ({"item_ids": [["a"], [], ["1"]]}, "expected items of the run, like 100, 103, 106, but none of 2 in it is one"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_name(
    serving: Serving, tmp_path: Path, table: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=message):
        recommend_file.recommend_file(serving, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_command_prints_the_throughput_and_takes_an_exported_folder_too(
    run: Path, serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = write(tmp_path / "in.parquet", [*random_histories(serving, 3), [UNKNOWN]])
    cli.main(["export", str(run), str(tmp_path / "served")])
    for folder, name in ((run, "a.parquet"), (tmp_path / "served", "b.parquet")):
        cli.main(["recommend", str(folder), "--histories", str(histories), "--out", str(tmp_path / name)])
        printed = capsys.readouterr().out
        assert "4 users in" in printed and "users/s" in printed
        assert "1 items of histories are not in the catalogue" in printed and "1 users have no known item" in printed
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--histories", "{in}"], "--out: expected the file"),
        (["--histories", "{in}", "--out", "lists.xlsx"], "--out lists.xlsx: expected a name that ends in .parquet or"),
        (["--histories", "{in}", "--out", "{in}"], "exists already"),
        (["--history", "1", "--out", "x.parquet"], "--out: expected it with --histories"),
        (["--history", "1", "--batch-size", "4"], "--batch-size: expected it with --histories"),
        (["--histories", "{in}", "--out", "{out}", "--source-ids", "DATA"], "DATA/items.parquet: expected a parquet"),
        (["--histories", "absent.parquet", "--out", "{out}"], "absent.parquet: expected a parquet file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"in": write(tmp_path / "in.parquet", [[1]]), "out": tmp_path / "out.parquet"}
    with pytest.raises(SystemExit, match=message):
        cli.main(["recommend", str(run), *(argument.format(**places) for argument in arguments)])
    assert not places["out"].exists()


def test_the_command_narrows_the_search_and_leaves_items_out(
    run: Path, serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = write(tmp_path / "in.parquet", random_histories(serving, 5))
    gone = serving.catalog.item_ids[[7, 8]].tolist()
    (tmp_path / "gone.txt").write_text("".join(f"{item}\n" for item in (*gone, UNKNOWN)))
    narrowed = ["--where", f"item_id <= {serving.catalog.item_ids[9]}", "--leave-out", str(tmp_path / "gone.txt")]
    out = tmp_path / "out.parquet"
    cli.main(["recommend", str(run), "--histories", str(histories), "--out", str(out), "--top", "20", *narrowed])
    expected = sorted(set(serving.catalog.item_ids[:10].tolist()) - set(gone))
    for items in pq.read_table(out)["item_ids"].to_pylist():
        assert sorted(items) == expected
    capsys.readouterr()
    history = str(serving.catalog.item_ids[0])
    cli.main(["recommend", str(run), "--history", history, "--top", "20", *narrowed])
    assert len(re.findall(r"^│ +\d+ │", capsys.readouterr().out, re.MULTILINE)) == 8
    (tmp_path / "gone.txt").write_text("absent")
    for options, message in (
        (["--where", "price < 3"], "expected a column of the items, item_id, title, got price"),
        (["--leave-out", str(tmp_path / "gone.txt")], "expected ids of the log, like .* none of 1 is one"),
        (["--leave-out", "absent.txt"], "expected a text file of item ids, cannot read it"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["recommend", str(run), "--history", history, *options])
