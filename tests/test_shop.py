"""A shop's afternoon: its own SKUs from the log to the lists, whatever numbers its items have in a folder.

The log has SKUs with leading zeros and one in letters, so that `prepare` numbers items by first sight; the same log in
another row order gives other numbers.
"""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin import cli
from tawin.cli import train

OPTIONS = [
    "--catalog.codes=8",
    "--policy.hidden-size=16",
    "--policy.layers=1",
    "--policy.heads=2",
    "--policy.intermediate-size=24",
    "--sft.epochs=4",
    "--grpo.steps=2",
    "--grpo.batch-size=8",
    "--grpo.group-size=6",
    "--grpo.evaluate-every=2",
    "--evaluation.beam-width=12",
    "--split.max-history=4",
]
USERS, ITEMS = 60, 24

pytestmark = pytest.mark.usefixtures("no_report")

Row = tuple[str, str, int]


def sku(item: int) -> str:
    return "GIFT" if item == 11 else f"{item:05d}"


def log_rows() -> list[Row]:
    draw = random.Random(1)
    rows, time = [], 1_700_000_000
    for user in range(USERS):
        item = draw.randrange(ITEMS)
        for _ in range(draw.randrange(7, 12)):
            item = (item + draw.choice((1, 1, 1, 5))) % ITEMS
            time += 60
            rows.append((f"cust-{user:03d}", sku(item), time))
    return rows


def prepare(folder: Path, name: str, rows: list[Row]) -> Path:
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user_id", "product_id", "event_time"), *rows])
    with open(folder / "titles.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("product_id", "name"), *((sku(item), f"Thing {item}") for item in range(ITEMS))])
    cli.main(["prepare", "csv", f"{folder / name}.csv", str(folder / name), "--items", str(folder / "titles.csv")])
    return folder / name


def shuffled(rows: list[Row]) -> list[Row]:
    return random.Random(2).sample(rows, len(rows))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA and the run trained on it; AGAIN, of the same log in another order; and others that are not the same."""
    folder = tmp_path_factory.mktemp("shop")
    rows = log_rows()
    data = prepare(folder, "DATA", rows)
    prepare(folder, "AGAIN", shuffled(rows))
    prepare(folder, "GROWN", [*rows, *((f"cust-{user:03d}", "NEW", 1_800_000_000) for user in range(9))])
    prepare(folder, "FEWER", [row for row in rows if row[1] != "00003"])
    prepare(folder, "LATER", [*rows, ("cust-000", "00001", 1_800_000_000)])
    train.main([*OPTIONS, "--data", str(data), "--out", str(folder / "RUN")])
    return folder


def sequences(rows: list[Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        found.setdefault(user, []).append(item)
    return found


def figures(text: str) -> list[str]:
    return re.findall(r"^(?:valid|test) .*recall.*$", text, re.MULTILINE)


def evaluated(shop: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    capsys.readouterr()
    cli.main(["evaluate", str(shop / "RUN"), *options])
    return figures(capsys.readouterr().out)


def lists(path: Path) -> dict[str, list[str]]:
    table = pq.read_table(path)
    return dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True))


def refusal(shop: Path, command: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        (train.main if command[0].startswith("--") else cli.main)(command)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_everybody_gets_a_list_of_skus_without_what_was_bought(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.csv"
    command = ["recommend", str(shop / "RUN"), "--histories", str(shop / "DATA" / "interactions.parquet")]
    cli.main([*command, "--out", str(out), "--exclude-history", "--titles", "--top", "30"])
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    bought = sequences(log_rows())
    titles = {sku(item): f"Thing {item}" for item in range(ITEMS)}
    for user, items in bought.items():
        own = [row for row in rows if row["user_id"] == user]
        assert {row["item_id"] for row in own} == set(titles) - set(items)
        assert [int(row["rank"]) for row in own] == list(range(1, len(own) + 1))
        assert all(row["title"] == titles[row["item_id"]] for row in own)
    assert {row["user_id"] for row in rows} == set(bought)


def test_a_log_dumped_again_is_the_same_data_for_every_command(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = (pq.read_table(shop / name / "items.parquet") for name in ("DATA", "AGAIN"))
    assert first["source_id"].to_pylist() != again["source_id"].to_pylist()  # other numbers
    results = json.loads((shop / "RUN" / "results.json").read_text())
    expected = evaluated(shop, capsys)
    assert f"recall@10 {results['grpo']['test']['recall@10']:.4f}" in expected[1]
    assert evaluated(shop, capsys, "--data", str(shop / "AGAIN")) == expected
    assert evaluated(shop, capsys, "--data", str(shop / "AGAIN"), "--exclude-history") == evaluated(
        shop, capsys, "--exclude-history"
    )

    cli.main(["export", str(shop / "RUN"), str(tmp_path / "EXPORT")])
    by_name = [{"user_id": user, "item_ids": items} for user, items in sequences(log_rows()).items()]
    pq.write_table(pa.Table.from_pylist(by_name), tmp_path / "skus.parquet")
    (tmp_path / "skus.csv").write_text(
        "user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item, _ in sorted(log_rows(), key=lambda r: r[2]))
    )
    wanted: dict[str, list[str]] = {}
    for number, (model, histories) in enumerate(
        [
            (shop / "RUN", shop / "DATA" / "interactions.parquet"),
            (shop / "RUN", shop / "AGAIN" / "interactions.parquet"),
            (tmp_path / "EXPORT", shop / "AGAIN" / "interactions.parquet"),
            (tmp_path / "EXPORT", tmp_path / "skus.parquet"),
            (shop / "RUN", tmp_path / "skus.csv"),
        ]
    ):
        out = tmp_path / f"{number}.parquet"
        cli.main(["recommend", str(model), "--histories", str(histories), "--out", str(out), "--top", "5"])
        found = lists(out)
        wanted = wanted or found
        assert found == wanted and all(len(items) == 5 for items in found.values())


def test_a_copy_of_a_folders_interactions_is_read_by_its_numbers_where_they_are_said(
    shop: Path, tmp_path: Path
) -> None:
    shutil.copy(shop / "AGAIN" / "interactions.parquet", tmp_path / "copied.parquet")
    command = ["recommend", str(shop / "RUN"), "--top", "5", "--histories"]
    numbers = [*command, str(tmp_path / "copied.parquet"), "--out", str(tmp_path / "copied-lists.parquet")]
    assert "expected items of the run, like " in refusal(shop, numbers)  # 3 is no SKU
    cli.main([*numbers, "--source-ids", str(shop / "AGAIN")])
    cli.main([*command, str(shop / "AGAIN" / "interactions.parquet"), "--out", str(tmp_path / "lists.parquet")])
    tables = [pq.read_table(tmp_path / name)["item_ids"] for name in ("copied-lists.parquet", "lists.parquet")]
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_one_history_is_in_skus_with_their_zeros(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    cli.main(["recommend", str(shop / "RUN"), "--history", "00012,GIFT,00003", "--exclude-history", "--top", "24"])
    shown = capsys.readouterr().out
    assert "history: Thing 12 | Thing 11 | Thing 3" in " ".join(shown.split())
    ranked = re.findall(r"^│ +\d+ │ +(\S+) │ Thing (\d+)", shown, re.MULTILINE)
    assert len(ranked) == 21 and all(sku(int(number)) == item for item, number in ranked)
    message = refusal(shop, ["recommend", str(shop / "RUN"), "--history", "12"])
    assert "--history: expected ids of the log, like " in message and message.endswith("got '12'")


def test_source_ids_of_the_same_log_may_be_given_and_of_another_are_refused(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recommend", str(shop / "RUN"), "--history", "00012,GIFT"]
    shown = []
    for options in ([], ["--source-ids", str(shop / "DATA")], ["--source-ids", str(shop / "AGAIN")]):
        capsys.readouterr()
        cli.main([*command, *options])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert "are new (NEW)" in refusal(shop, [*command, "--source-ids", str(shop / "GROWN")])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GROWN", r"GROWN: expected the 24 items .* 0 of them are missing, 1 of its 25 are new \(NEW\)"),
        ("FEWER", r"FEWER: expected the 24 items .* 1 of them are missing \(00003\), 0 of its 23 are new"),
        ("LATER", r"LATER: expected the data .* 60 users .*got other histories"),
    ],
)
def test_another_log_is_refused_by_name(shop: Path, tmp_path: Path, name: str, message: str) -> None:
    data, run = str(shop / name), str(shop / "RUN")
    assert re.search(message, refusal(shop, ["evaluate", run, "--data", data]))
    assert re.search(message, refusal(shop, ["--out", run, "--resume", "--data", data]))
    if name != "LATER":  # whose items are the same
        out = tmp_path / "lists.parquet"
        histories = str(shop / name / "interactions.parquet")
        message = message.replace("(?:--data )?", "")
        assert re.search(message, refusal(shop, ["recommend", run, "--histories", histories, "--out", str(out)]))
        assert not out.exists()
        start = [*OPTIONS, "--data", data, "--model", f"{run}/checkpoints/sft", "--out", str(tmp_path / "warm")]
        assert "with --model" in refusal(shop, start) and not (tmp_path / "warm").exists()


def test_data_that_changed_in_its_place_is_refused_and_that_was_moved_is_found(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluated(shop, capsys)
    shutil.copytree(shop / "RUN", tmp_path / "RUN")
    config = tmp_path / "RUN" / "config.yaml"
    config.write_text(config.read_text().replace(str(shop / "DATA"), str(tmp_path / "DATA")))
    command = ["evaluate", str(tmp_path / "RUN")]
    assert "where it was moved, --data says where it is now" in refusal(shop, command)
    cli.main([*command, "--data", str(shop / "DATA")])
    assert figures(capsys.readouterr().out) == expected
    shutil.copytree(shop / "LATER", tmp_path / "DATA")
    assert "the data was changed" in refusal(shop, command)


def test_the_run_knows_the_absolute_place_of_its_data(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    train.main([*OPTIONS, "--sft.epochs=0", "--grpo.steps=0", "--data", "DATA", "--out", str(tmp_path / "RUN")])
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", "RUN"])
    train.main(["--out", "RUN", "--resume"])
    assert f"data: {shop / 'DATA'}" in Path("RUN/config.yaml").read_text()
    assert json.loads(Path("RUN/catalog/data.json").read_text())["folder"] == str(shop / "DATA")


def test_a_run_goes_on_with_its_log_dumped_again(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFT is done, its evaluation is not: it gives the figures of the run that was not stopped."""
    shutil.copytree(shop / "RUN", tmp_path / "RUN")
    results = json.loads((tmp_path / "RUN" / "results.json").read_text())
    expected = results.pop("sft"), results.pop("grpo")
    (tmp_path / "RUN" / "results.json").write_text(json.dumps(results))
    train.main(["--out", str(tmp_path / "RUN"), "--resume", "--data", str(shop / "AGAIN")])
    assert "the same data with its users in another order" in capsys.readouterr().err
    found = json.loads((tmp_path / "RUN" / "results.json").read_text())
    assert (found["sft"], found["grpo"]) == expected


@pytest.mark.parametrize("start", ["RUN/checkpoints/sft", "EXPORT"])
def test_a_model_starts_on_its_log_dumped_again_where_it_ended(shop: Path, tmp_path: Path, start: str) -> None:
    if start == "EXPORT":
        cli.main(["export", str(shop / "RUN"), str(tmp_path / "EXPORT"), "--stage", "sft"])
    model = str((tmp_path if start == "EXPORT" else shop) / start)
    data = ["--data", str(shop / "AGAIN"), "--model", model, "--seed", "1"]
    train.main([*OPTIONS, *data, "--sft.epochs=0", "--grpo.steps=0", "--out", str(tmp_path / "WARM")])
    found, first = (json.loads((at / "results.json").read_text()) for at in (tmp_path / "WARM", shop / "RUN"))
    assert found["sft"] == first["sft"]


def test_a_token_an_item_means_the_same_item_in_a_log_dumped_again(shop: Path, tmp_path: Path) -> None:
    item, none = "--catalog.item-tokens=item", ["--sft.epochs=0", "--grpo.steps=0"]
    train.main([*OPTIONS, item, "--grpo.steps=0", "--data", str(shop / "DATA"), "--out", str(tmp_path / "RUN")])
    model = ["--model", str(tmp_path / "RUN" / "checkpoints" / "sft")]
    train.main([*OPTIONS, item, *none, *model, "--data", str(shop / "AGAIN"), "--out", str(tmp_path / "WARM")])
    found, first = (json.loads((tmp_path / name / "results.json").read_text())["sft"] for name in ("WARM", "RUN"))
    for part in ("valid", "test"):  # sums over users in another order
        assert found[part] == pytest.approx(first[part])


def test_prepare_says_that_ids_were_numbered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "DATA", log_rows())
    assert "note: item ids are not all whole numbers" in capsys.readouterr().out


def without_source_ids(run: Path) -> None:
    path = run / "catalog" / "items.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["source_id"]), path)
    (run / "catalog" / "data.json").unlink()


def test_a_run_of_an_earlier_version_is_used_as_it_was(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluated(shop, capsys)
    shutil.copytree(shop / "RUN", tmp_path / "RUN")
    without_source_ids(tmp_path / "RUN")
    cli.main(["evaluate", str(tmp_path / "RUN")])
    assert figures(capsys.readouterr().out) == expected
    train.main(["--out", str(tmp_path / "RUN"), "--resume"])
    cli.main(["export", str(tmp_path / "RUN"), str(tmp_path / "EXPORT")])
    shown = []
    for run, history in ((tmp_path / "RUN", "00012,GIFT"), (shop / "RUN", "00012,GIFT")):
        capsys.readouterr()
        cli.main(["recommend", str(run), "--history", history, "--source-ids", str(shop / "DATA")])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    cli.main(["recommend", str(tmp_path / "EXPORT"), "--history", "12,11"])  # the folder's own numbers
    assert "are missing" in refusal(
        shop, ["recommend", str(tmp_path / "RUN"), "--history", "GIFT", "--source-ids", str(shop / "FEWER")]
    )
