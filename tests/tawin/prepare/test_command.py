"""`tawin prepare` on the command line, up to recommendations from a csv in three commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tawin import cli
from tawin.commands import train

from ...test_docs_commands import SMALL
from .folders import sequences, titles, write


def write_log(folder: Path, names: str = "{}") -> Path:
    """80 users, each with six of 24 items, and one malformed line."""
    draw = np.random.default_rng(0)
    rows = [
        f"{user},{names.format(item)},{1_700_000_000 + 60 * place}"
        for user in range(80)
        for place, item in enumerate(draw.permutation(24)[:6])
    ]
    return write(folder / "log.csv", "user,item,timestamp", *rows, "one field")


def test_the_console_script_prepares_and_says_what_it_did(tmp_path: Path) -> None:
    script = shutil.which("tawin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert script is not None, "expected the package to be installed"
    log = write_log(tmp_path)
    items = write(tmp_path / "items.csv", "item,title", *(f"{item},Item {item}" for item in range(20)))
    command = [script, "prepare", "csv", str(log), str(tmp_path / "data"), "--items", str(items)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        "log.csv: 482 lines, 1 malformed",
        "items.csv: 21 lines, 0 malformed",
        f"  malformed: {log}, line 482: expected 3 fields, as the first line has, got 1",
        "480 interactions",
        f"{tmp_path / 'data'}: 80 users, 24 items, 480 interactions; 24 items in the catalogue, 20 titles",
        f"next: tawin train --data {tmp_path / 'data'} --out RUN",
    ]
    assert "log.csv" not in found.stderr  # a progress bar is for terminals
    assert titles(tmp_path / "data")["3"] == "Item 3"
    with pytest.raises(SystemExit, match=r"^error: .*/data: expected a new or an empty folder"):
        cli.main(command[1:])


def test_every_option_arrives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{1_500_000_000_000 + n};x;b{n % 7};a;{n % 5 + 1}" for n in range(40)]
    log = write(tmp_path / "log.txt", *rows, "broken")
    items = write(tmp_path / "items.csv", "id;label", "b1;One")
    cli.main(
        [
            *("prepare", "csv", str(log), str(tmp_path / "data"), "--items", str(items), "--title-column", "label"),
            *("--no-header", "--user-column", "4", "--item-column", "3", "--time-column", "1", "--rating-column", "5"),
            *("--delimiter", ";", "--time-unit", "ms", "--min-interactions", "1", "--min-rating", "2"),
            *("--after", "2017-07-14T02:40:00.003", "--before", "2017-07-14T02:40:00.030", "--duplicates", "first"),
            *("--max-malformed", "0.2"),
        ]
    )
    kept = [n for n in range(3, 30) if n % 5 + 1 >= 2]
    assert sequences(tmp_path / "data") == {"a": list(dict.fromkeys(f"b{n % 7}" for n in kept))}
    assert titles(tmp_path / "data")["b1"] == "One"
    said = capsys.readouterr().out
    assert "40 interactions, 8 below --min-rating, 10 outside --after and --before, 15 duplicates" in said
    options = json.loads((tmp_path / "data" / "prepare.json").read_text())["options"]
    assert (options["duplicates"], options["items"], options["min_rating"]) == ("first", "items.csv", 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xml", "a", "b"], "invalid choice: 'xml' (choose from "),
        (["csv", "a"], "the following arguments are required: FOLDER"),
        (["s3rec", "a", "b", "--user-column", "u"], "unrecognized arguments: --user-column u"),
        (["csv", "a", "b", "--duplicates", "some"], "invalid choice: 'some'"),
    ],
)
def test_what_cannot_be_parsed_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["prepare", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_csv_gives_recommendations_with_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path, "sku-{}")
    cli.main(["prepare", "csv", "log.csv", "DATA"])
    train.main(["--data", "DATA", "--out", "RUN", *SMALL])
    capsys.readouterr()
    cli.main(["recommend", "RUN", "--history", "sku-3,sku-17,sku-5", "--source-ids", "DATA", "--top", "4"])
    items = pq.read_table("DATA/items.parquet").to_pydict()
    number_of = dict(zip(items["source_id"], items["item_id"], strict=True))
    by_name = recommended(capsys.readouterr().out)
    assert len(by_name) == 4
    history = ",".join(str(number_of[f"sku-{item}"]) for item in (3, 17, 5))
    cli.main(["recommend", "RUN", "--history", history, "--top", "4"])
    assert recommended(capsys.readouterr().out) == [str(number_of[name]) for name in by_name]
    with pytest.raises(SystemExit, match=r"--history: expected ids of the log, like sku-\d+, .*, got 'sku-99'"):
        cli.main(["recommend", "RUN", "--history", "sku-99", "--source-ids", "DATA"])
    with pytest.raises(SystemExit, match=r"expected item ids like 12,55,83, got 'sku-3'; --source-ids DATA takes"):
        cli.main(["recommend", "RUN", "--history", "sku-3"])


def recommended(said: str) -> list[str]:
    """The items of the printed table."""
    return [line.split("│")[2].strip() for line in said.splitlines() if line.startswith("│")]
