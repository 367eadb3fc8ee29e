"""`tawin prepare` on the command line, up to recommendations from a csv in three commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tawin import cli
from tawin.cli import train
from tawin.cli.options import parse_training

from ...docs_pages import SMALL
from ..prepare.folders import sequences, titles, write


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
        "times: 2023-11-14 22:13:20 to 2023-11-14 22:18:20 UTC, read as seconds since 1970",
        f"{tmp_path / 'data'}: 80 users, 24 items, 480 interactions; 24 items in the catalogue, 20 titles",
        "note: items.csv describes 20 of the 24 items of the log",
        f"next: tawin train --preset cpu-small --data {tmp_path / 'data'} --out RUN",
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


def test_the_options_of_times_and_of_the_items_file_arrive(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user,item,time", *(f"a,b{n},{n}.1.2020" for n in range(1, 5)))
    items = write(tmp_path / "items.csv", "code|id|name", "b1|x|One", "b2|y|Two")
    options = (
        "--items",
        str(items),
        "--items-item-column",
        "code",
        "--items-delimiter",
        "|",
        "--min-interactions",
        "0",
    )
    with pytest.raises(SystemExit, match=r"error: .*log.csv: expected dates that say .* --time-format"):
        cli.main(["prepare", "csv", str(log), str(tmp_path / "data"), *options])
    cli.main(["prepare", "csv", str(log), str(tmp_path / "data"), *options, "--time-format", "%d.%m.%Y"])
    assert sequences(tmp_path / "data") == {"a": ["b1", "b2", "b3", "b4"]}
    assert titles(tmp_path / "data")["b1"] == "One"
    sasrec = write(tmp_path / "log.txt", "1 b1 b2 b3")
    cli.main(["prepare", "s3rec", str(sasrec), str(tmp_path / "more"), *options, "--title-column", "id"])
    assert titles(tmp_path / "more") == {"b1": "x", "b2": "y", "b3": None}
    with pytest.raises(SystemExit, match=r"--time-unit: expected it without --time-format"):
        cli.main(["prepare", "csv", "a", "b", "--time-format", "%d.%m.%Y", "--time-unit", "s"])
    with pytest.raises(SystemExit, match=r"--time-format: expected what strptime reads and with a year"):
        cli.main(["prepare", "csv", "a", "b", "--time-format", "%H:%M"])


@pytest.mark.parametrize("name", ["DATA", "my data", "it's", 'a"b', "$HOME;x"])
def test_the_next_command_is_one_that_a_shell_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    cli.main(["prepare", "csv", str(write_log(tmp_path)), str(tmp_path / name)])
    (said,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    words = shlex.split(said)
    assert words[words.index("--data") + 1] == str(tmp_path / name)
    assert words[words.index("--preset") + 1] == "cpu-small"
    assert parse_training(words[words.index("--preset") :]).config.data == str(tmp_path / name)


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
    by_name = recommended(capsys.readouterr().out)
    assert len(by_name) == 4 and all(name.startswith("sku-") for name in by_name)
    cli.main(["recommend", "RUN", "--history", "sku-3,sku-17,sku-5", "--top", "4"])  # the run knows them itself
    assert recommended(capsys.readouterr().out) == by_name
    with pytest.raises(SystemExit, match=r"--history: expected ids of the log, like sku-\d+, .*, got 'sku-99'"):
        cli.main(["recommend", "RUN", "--history", "sku-99", "--source-ids", "DATA"])
    with pytest.raises(SystemExit, match=r"--history: expected ids of the log, like sku-\d+, .*, got '3'"):
        cli.main(["recommend", "RUN", "--history", "3"])  # a number that the folder gave is no id


def recommended(said: str) -> list[str]:
    """The items of the printed table."""
    return [line.split("│")[2].strip() for line in said.splitlines() if line.startswith("│")]


@pytest.mark.parametrize("weights", ["view", "view=", "=1", "view=.2,view=.3", "view=a lot", ""])
def test_weights_that_cannot_be_read_are_refused(weights: str) -> None:
    options = ["--event-column", "event_type", "--weights", weights]
    with pytest.raises(SystemExit, match=r"--weights: expected each event once with a number, as in view=\.2"):
        cli.main(["prepare", "csv", "a", "b", *options])
