"""A shop's second month: a csv becomes a model, the next csv an extended one, and an engine is handed the result.

July's log has 24 items. August's has July's rows too; two items are new in it, one of them described but taken by
nobody yet, and one is gone. The titles say which of four kinds an item is, and everybody stays with one kind for long.
"""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tawin import beam_search, cli, load_catalog
from tawin.data.dataset import load_dataset
from tawin.run.folder import RunFolder
from tawin.train.extend import extended_config
from tawin.train.later import evaluate_later

KINDS = ("lamp", "tent", "kettle", "boots")
USERS, ITEMS = 120, 24
TAKEN, UNTAKEN, GONE = "NEW-24", "NEW-25", "00007"
SMALL = [
    "--preset=cpu-small",
    "--policy.hidden-size=32",
    "--policy.heads=2",
    "--policy.intermediate-size=48",
    "--policy.hidden-dropout=0.1",
    "--sft.epochs=12",
    "--sft.batch-size=16",
    "--sft.evaluate-every=12",
    "--grpo.steps=2",
    "--grpo.batch-size=8",
    "--grpo.group-size=6",
    "--evaluation.beam-width=12",
    "--split.max-history=6",
]

pytestmark = pytest.mark.usefixtures("no_report")

Row = tuple[str, str, int]


def sku(item: int) -> str:
    return {24: TAKEN, 25: UNTAKEN}.get(item, f"{item:05d}")


def rows_of(month: int, items: int) -> list[Row]:
    """Everybody takes items of one kind (item % 4), seldom of the next one; `items`: how many there are."""
    draw, rows = random.Random(month), []
    for user in range(USERS):
        kind = (user + (draw.random() < 0.1)) % 4
        for place in range(draw.randrange(6, 9)):
            item = draw.choice(range(kind, items, 4))
            rows.append((f"cust-{user:03d}", sku(item), 1_700_000_000 + 2_600_000 * month + 60 * place))
    return rows


def write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def titles_of(folder: Path) -> list[str]:
    return pq.read_table(folder / "items.parquet")["title"].to_pylist()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of logs prepared, a run on the first, and the run that goes on from it with the second."""
    folder = tmp_path_factory.mktemp("story")
    july = rows_of(0, ITEMS)
    august = [row for row in [*july, *rows_of(1, ITEMS + 1)] if row[1] != GONE]
    for name, rows, items in (("JULY", july, ITEMS), ("AUGUST", august, ITEMS + 2)):
        events = [(*row, ("view", "purchase")[place % 2]) for place, row in enumerate(rows)]
        clicks = [(*row, "click") for row in rows[:9]]
        write(folder / f"{name}.csv", [("customer", "product_id", "time", "event_type"), *events, *clicks])
        titles = [
            (sku(item), f"{KINDS[item % 4]} number {item}")
            for item in range(items)
            if sku(item) != GONE or name == "JULY"
        ]
        write(folder / f"{name}-items.csv", [("product_id", "name"), *titles])
        described = ["--items", str(folder / f"{name}-items.csv"), "--keep-unseen-items"]
        weighed = ["--event-column", "event_type", "--weights", "view=.5,purchase=1"]
        cli.main(["prepare", "csv", str(folder / f"{name}.csv"), str(folder / name), *described, *weighed])
        weights = pq.read_table(folder / name / "interactions.parquet")["weights"].combine_chunks().flatten()
        assert set(weights.to_pylist()) == {0.5, 1.0}
    words = CountVectorizer(vocabulary=list(KINDS))
    for name in ("JULY", "AUGUST"):
        np.save(folder / f"{name}.npy", words.transform(titles_of(folder / name)).toarray().astype(np.float32))
    sources = ["--catalog.vectors-from", "cooccurrence", "file", "--catalog.vectors"]
    run = ["--data", str(folder / "JULY"), "--out", str(folder / "RUN")]
    cli.main(["train", *SMALL, *run, *sources, str(folder / "JULY.npy")])
    again = ["--data", str(folder / "AUGUST"), "--out", str(folder / "NEXT"), "--sft.epochs=4"]
    cli.main(["extend", str(folder / "RUN"), *again, "--catalog.vectors", str(folder / "AUGUST.npy")])
    return folder


def kind_of(name: str) -> int:
    return {TAKEN: 24, UNTAKEN: 25}.get(name, -1) % 4 if name.startswith("NEW") else int(name) % 4


def best(run: Path, capsys: pytest.CaptureFixture[str], history: str, top: int = 26) -> list[str]:
    capsys.readouterr()
    cli.main(["recommend", str(run), "--history", history, "--top", str(top)])
    return re.findall(r"^│ +\d+ │ +(\S+) │", capsys.readouterr().out, re.MULTILINE)


def test_items_keep_their_tokens_whatever_their_numbers_are_and_the_gone_one_its_row(shop: Path) -> None:
    old, new = (load_catalog(shop / name / "catalog") for name in ("RUN", "NEXT"))
    tokens = [dict(zip(each.names, each.token_ids[:, 0].tolist(), strict=True)) for each in (old, new)]
    known = set(tokens[0]) - {GONE}
    assert {name: tokens[0][name] for name in known} == {name: tokens[1][name] for name in known}
    assert set(tokens[1]) - known == {TAKEN, UNTAKEN}
    assert min(tokens[1][TAKEN], tokens[1][UNTAKEN]) > max(tokens[0].values())
    tokenizer = AutoTokenizer.from_pretrained(shop / "NEXT" / "checkpoints" / "grpo")
    assert tokenizer.convert_tokens_to_ids(f"<item_{GONE}>") == tokens[0][GONE]
    model = AutoModelForCausalLM.from_pretrained(shop / "NEXT" / "checkpoints" / "grpo")
    assert len(model.get_input_embeddings().weight) == len(tokenizer) == max(tokens[1].values()) + 1
    results = json.loads((shop / "NEXT" / "results.json").read_text())
    assert {name: results["extended"][name] for name in ("known", "new", "gone")} == {"known": 23, "new": 2, "gone": 1}


def test_an_item_that_nobody_took_is_recommended_to_those_who_take_its_kind(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its text alone: 25 is a tent, like 1, 5, 9; the model is asked alone, without counts."""
    catalog = load_catalog(shop / "NEXT" / "catalog")
    model = AutoModelForCausalLM.from_pretrained(shop / "NEXT" / "checkpoints" / "grpo").eval()
    histories = [[catalog.index_of(sku(item)) for item in (kind, kind + 8, kind + 12)] for kind in range(4)]
    with torch.no_grad():
        found = beam_search(model, *catalog.encode_histories([np.array(each) for each in histories]), catalog.trie, 25)
    untaken = catalog.index_of(UNTAKEN)
    ranks = [row.index(untaken) for row in found.item_ids.tolist()]
    assert ranks[1] < 7 and min(ranks[:1] + ranks[2:]) >= 7  # there are seven tents


def test_the_new_item_and_the_old_ones_are_found_by_who_takes_their_kind(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in range(4):
        ranked = best(shop / "NEXT", capsys, ",".join(sku(item) for item in (kind, kind + 8, kind + 16)))
        assert GONE not in ranked
        assert sum(kind_of(name) == kind for name in ranked[:5]) >= 4
    assert TAKEN in best(shop / "NEXT", capsys, "00000,00008,00004", top=8)


def test_next_month_is_evaluated_with_unknown_items_counted_left_out_or_added(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = load_dataset(shop / "AUGUST")
    last = [sequences.items.names[row[-1]] for row in sequences.sequences]
    new = sum(name == TAKEN for name in last)
    capsys.readouterr()
    command = ["evaluate", str(shop / "RUN"), "--data", str(shop / "AUGUST"), "--unknown"]
    recalls = {}
    for unknown in ("count", "leave_out", "extend"):
        vectors = ["--vectors", str(shop / "AUGUST.npy")] if unknown == "extend" else []
        cli.main([*command, unknown, *vectors])
        shown = capsys.readouterr().out
        assert "23 items that the run knows, 2 that it does not, 1 of the run's are gone" in shown
        assert f"{USERS - new} users took an item that the run knows, {new} one that it does not" in shown
        found = re.findall(r"\((\d+) users\): .*recall@10 ([\d.]+)", shown)
        recalls[unknown] = [(int(users), float(recall)) for users, recall in found]
    assert [users for users, _ in recalls["count"]] == [USERS, USERS - new, new]
    assert recalls["count"][2][1] == 0.0 < recalls["extend"][2][1]  # a new item is never found, then it is
    (users, recall), *_ = recalls["leave_out"]
    assert users == USERS - new and recall == recalls["count"][1][1]
    assert recalls["count"][0][1] == pytest.approx(recall * (USERS - new) / USERS, abs=1e-3)


def test_who_did_nothing_since_is_in_no_figure(shop: Path, tmp_path: Path) -> None:
    run = RunFolder.open(shop / "RUN")
    with pytest.raises(ValueError, match="expected a user with something new"):
        evaluate_later(run, shop / "JULY", "count")
    rows = [*rows_of(0, ITEMS), *[row for row in rows_of(1, ITEMS) if row[0] < "cust-030"]]
    write(tmp_path / "log.csv", [("customer", "product_id", "time"), *rows])
    cli.main(["prepare", "csv", str(tmp_path / "log.csv"), str(tmp_path / "SOME")])
    found = evaluate_later(run, tmp_path / "SOME", "count")
    assert (len(found.ranks), found.nothing_new, found.new_users) == (30, USERS - 30, 0)
    assert found.figures["recall@10"] == pytest.approx(np.mean((found.ranks >= 0) & (found.ranks < 10)))


def test_the_extended_run_is_evaluated_apart_for_old_and_new_items(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    cli.main(["evaluate", str(shop / "NEXT"), "--since", str(shop / "RUN")])
    shown = capsys.readouterr().out
    found = {name: int(users) for name, users in re.findall(r"^(test.*) \((\d+) users\)", shown, re.MULTILINE)}
    whole, known, new = (
        next(count for name, count in found.items() if part in name) for part in ("test", "known", "new")
    )
    assert whole == USERS == known + new and new > 0


def test_training_on_everything_ends_with_the_last_model_and_no_figures(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shop / "SERVE"
    options = ["--split.method", "none", "--sft.epochs=2", "--catalog.vectors", str(shop / "AUGUST.npy")]
    cli.main(["extend", str(shop / "RUN"), "--data", str(shop / "AUGUST"), "--out", str(out), *options])
    assert "everything was for training" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["sft"] == results["grpo"] == {}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "valid" in line]
    progress = json.loads(next((out / "checkpoints").glob("state-grpo-*2/state.json")).read_text())["progress"]
    assert (progress["best_step"], progress["finished"]) == (2, True)
    cli.main(["train", "--out", str(out), "--resume"])
    with pytest.raises(SystemExit, match="trained on everything"):
        cli.main(["evaluate", str(out)])
    cli.main(["report", str(out)])


def test_the_hand_over_is_a_plain_folder_with_the_new_items_in_it(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["export", str(shop / "NEXT"), str(shop / "EXPORT")])
    items = pq.read_table(shop / "EXPORT" / "items.parquet").to_pylist()
    assert {TAKEN, UNTAKEN} < {item["source_id"] for item in items} and GONE not in {
        item["source_id"] for item in items
    }
    assert best(shop / "EXPORT", capsys, "00001,00005") == best(shop / "NEXT", capsys, "00001,00005")
    assert len(AutoTokenizer.from_pretrained(shop / "EXPORT")) == 3 + ITEMS + 2


def test_another_shops_log_and_another_kind_of_tokens_are_refused(shop: Path, tmp_path: Path) -> None:
    others = [(user, f"x{item}", time) for user, item, time in rows_of(0, ITEMS)]
    write(tmp_path / "log.csv", [("customer", "product_id", "time"), *others])
    cli.main(["prepare", "csv", str(tmp_path / "log.csv"), str(tmp_path / "OTHER")])
    command = ["extend", str(shop / "RUN"), "--out", str(tmp_path / "OUT"), "--data"]
    with pytest.raises(SystemExit, match="expected a later log of the items that the run was trained on"):
        cli.main([*command, str(tmp_path / "OTHER")])
    with pytest.raises(SystemExit, match=r"catalog\.item_tokens: expected item, as the run extended has, got title"):
        cli.main([*command, str(shop / "AUGUST"), "--catalog.item-tokens", "title", "--catalog.vectors-from"])
    with pytest.raises(SystemExit, match=r"one row an item of items\.parquet"):  # July's vectors
        cli.main([*command, str(shop / "AUGUST")])
    assert not (tmp_path / "OUT").exists()


def test_a_run_of_semantic_ids_is_extended_by_ids_that_are_free(shop: Path, tmp_path: Path) -> None:
    tokens = ["--catalog.item-tokens=semantic_id", "--catalog.levels=3", "--sft.epochs=1", "--grpo.steps=0"]
    cli.main(["train", *SMALL, *tokens, "--data", str(shop / "JULY"), "--out", str(tmp_path / "RUN")])
    cli.main(["extend", str(tmp_path / "RUN"), "--data", str(shop / "AUGUST"), "--out", str(tmp_path / "NEXT")])
    old, new = (load_catalog(tmp_path / name / "catalog") for name in ("RUN", "NEXT"))
    assert old.semantic_ids is not None and new.semantic_ids is not None
    ids = [dict(zip(each.names, each.semantic_ids, strict=True)) for each in (old, new)]
    assert all(ids[1][name] == own for name, own in ids[0].items() if name != GONE)
    assert not {ids[1][TAKEN], ids[1][UNTAKEN]} & set(ids[0].values())


def test_python_says_the_same_as_the_command(shop: Path) -> None:
    config = extended_config(RunFolder.open(shop / "RUN"), shop / "AUGUST", "sft")
    assert (config.data, config.model) == (str(shop / "AUGUST"), str(shop / "RUN" / "checkpoints" / "sft"))
    assert config.catalog.extend and config.sft.epochs == 12
