"""Every command of README and docs/ runs here, at a tiny size, or stands in a list with the reason why it cannot; its
options are checked all the same.

Commands of a page run in their order, in this process, in a folder that holds what the page takes for granted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import experiments.run
from experiments.plan import table_names
from tawin import cli
from tawin.cli import train
from tawin.cli.commands import COMMANDS
from tawin.cli.options import parse_training
from tawin.config import SyntheticConfig
from tawin.data.dataset import save_dataset
from tawin.data.synthetic import make_synthetic

from .docs_pages import PAGES, ROOT, SMALL, STORIES, Command, code, commands, commands_of
from .tawin.text_models import save_pretrained_model

NOT_RUN = {
    r"pip install ": "installs; .ci/run does README's two",
    r"pytest( -n 2 --dist loadfile| bench/\S+)?$": "this suite itself, or a benchmark of minutes",
    r"tawin train --out RUN$": "the demo takes minutes; .ci/run runs it",
    r"torchrun ": "several processes on GPUs; tests/test_distributed.py runs two on a CPU",
    r"accelerate launch ": "several processes on GPUs; tests/test_distributed.py runs two on a CPU",
    r"python examples/": "tests/test_examples.py runs them",
    r"examples/\S+\.sh": "trains on GPUs; tests/tawin/integrations checks its options",
    r"(python train\.py|tawin train) .*flash_attention_2": "needs a GPU; test_causal_attention.py has a stand-in",
    r"python -m (bench|tools)\.": "benchmarks and tools take minutes; tests/bench and tests/tools have tests of each",
    r"tawin prepare (?!csv log(2?\.csv DATA|-next\.csv NEXT))": "public data; tests/tawin/prepare reads small ones",
    r"python -m sglang\.|curl |flashrec ": "another project's server, on a GPU",
    r"python -m experiments\.run (?!list)": "tables take hours; tests/experiments runs small ones",
}

pytestmark = pytest.mark.usefixtures("no_report")  # `tawin report` draws its own


def is_run(command: Command) -> bool:
    return not any(re.match(pattern, " ".join(command.words)) for pattern in NOT_RUN)


ALL = [command for page in PAGES for command in commands(page)]
PAGES_WITH_RUNS = [page for page in PAGES if any(is_run(command) for command in commands(page))]
LONG = ("docs/TUTORIAL.md", "docs/PRETRAINED.md")  # half a minute each
QUICK_PAGES = [page for page in PAGES_WITH_RUNS if page not in LONG]
LONG_PAGES = [pytest.param(page, marks=pytest.mark.slow) for page in LONG]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "DATA"
    save_dataset(make_synthetic(SyntheticConfig(num_users=120, num_items=60, num_clusters=6), seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def finished_run(data_folder: Path) -> Path:
    run = data_folder.parent / "RUN"
    train.main(["--preset", "cpu-small", "--data", str(data_folder), "--out", str(run), *SMALL])
    return run


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """(page, folder): a working folder with what the page's commands take for granted."""
    page = request.param
    text = "\n".join(" ".join(command.words) for command in commands(page) if is_run(command))
    monkeypatch.chdir(tmp_path)
    if "tawin prepare" in text:
        write_log(tmp_path)
    elif "DATA" in text:
        shutil.copytree(request.getfixturevalue("data_folder"), tmp_path / "DATA")
    if "RUN" in text and "--out RUN" not in text:
        shutil.copytree(request.getfixturevalue("finished_run"), tmp_path / "RUN")
    if "MODEL" in text:
        save_pretrained_model(tmp_path / "MODEL", [f"item {number}" for number in range(60)])
    if "HISTORIES.parquet" in text:
        pq.write_table(pa.table({"user_id": [7, 8], "item_ids": [[1, 2, 3], [4]]}), tmp_path / "HISTORIES.parquet")
    yield page, tmp_path


def write_log(folder: Path) -> None:
    """log.csv, once more as log2.csv in another order, and items.csv, as the tutorial says they are."""
    draw = np.random.default_rng(0)
    users, items, length = 120, 60, 9
    taken = draw.integers(0, items, size=(users, length))
    rows = [f"{u},{i},{1_700_000_000 + 60 * place}" for u in range(users) for place, i in enumerate(taken[u])]
    for name in ("log.csv", "log2.csv"):  # the same log, dumped twice
        (folder / name).write_text("\n".join(["user,item,timestamp", *draw.permutation(rows)]) + "\n")
    words = ("red", "oak", "lamp", "kettle", "small", "tent")
    titles = [f"{item},{words[item % 6]} {words[item // 6 % 6]} {item}" for item in range(items)]
    (folder / "items.csv").write_text("\n".join(["item,title", *titles]) + "\n")
    # A month later: two items more, one of which nobody took, and one less.
    later = draw.integers(1, items + 1, size=(users, length))
    rows = [row for row in rows if row.split(",")[1] != "0"]
    rows += [f"{u},{i},{1_800_000_000 + 60 * place}" for u in range(users) for place, i in enumerate(later[u])]
    (folder / "log-next.csv").write_text("\n".join(["user,item,timestamp", *draw.permutation(rows)]) + "\n")
    titles = [*titles[1:], f"{items},red oak {items}", f"{items + 1},small tent {items + 1}"]
    (folder / "items-next.csv").write_text("\n".join(["item,title", *titles]) + "\n")


@pytest.mark.parametrize("world", [*QUICK_PAGES, *LONG_PAGES], indirect=True)
def test_the_commands_of_a_page_run_in_their_order(world: tuple[str, Path]) -> None:
    page, _ = world
    for each in code(page):
        if isinstance(each, Command):
            if is_run(each):
                run(each)
        elif page in STORIES:
            each.run()


def run(command: Command) -> None:
    match command.words:
        case ("python", "train.py", *arguments) | ("tawin", "train", *arguments):
            is_new = "--resume" not in arguments
            train.main([*(SMALL if is_new else ()), *arguments])  # what the page says comes last and holds
        case ("tawin", *arguments):
            cli.main(arguments)
        case ("python", "-m", "experiments.run", *arguments):
            assert experiments.run.main(arguments) == 0
        case _:
            raise AssertionError(f"{command}: neither run nor listed in NOT_RUN with a reason")


def require_valid(words: Sequence[str]) -> None:
    """Whether a command that is not run is one that could be: its module, file, options and extras exist."""
    match words:
        case ("python", "train.py", *arguments) | ("tawin", "train", *arguments):
            parse_training([argument for argument in arguments if argument != "--resume"])
        case ("torchrun", *arguments):
            launched = get_args_parser().parse_args(arguments)
            begun = () if launched.module else ("python",)  # `-m tawin train` is `tawin train`
            require_valid([*begun, launched.training_script, *launched.training_script_args])
        case ("accelerate", "launch", *arguments):
            launched = launch_command_parser().parse_args(arguments)
            begun = () if launched.module else ("python",)
            require_valid([*begun, launched.training_script, *launched.training_script_args])
        case ("python", "-m", "experiments.run", table, *arguments):
            assert table in table_names(), f"no table {table}"
            tyro.cli(experiments.run.Options, args=[table, *arguments])
        case ("python", "-m", "sglang.launch_server", *_) | ("curl", *_) | ("flashrec", *_):
            pass  # nothing of ours to check
        case ("python", "-m", module, *arguments):
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None, f"no module {module}"
            require_options(Path(spec.origin).parent, arguments)
        case ("tawin", *arguments):
            parser = argparse.ArgumentParser(exit_on_error=False)
            subcommands = parser.add_subparsers(required=True)
            for each in COMMANDS:
                each.add_command(subcommands)
            parser.parse_args(arguments)
        case ("pip", "install", "-e", target):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert set(re.findall(r"[\w-]+", target)) <= project["optional-dependencies"].keys(), target
        case ("python", script):
            assert (ROOT / script).is_file(), f"no file {script}"
        case (script, *_) if script.endswith(".sh"):
            assert os.access(ROOT / script, os.X_OK), f"no script {script}"
        case ("pip", "install", package, "--no-build-isolation"):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert any(package in extra[0] for extra in project["optional-dependencies"].values()), package
        case ("pytest", "-n", "2", "--dist", "loadfile"):
            pass  # as CI runs it
        case ("pytest", *files):
            assert all((ROOT / file).exists() for file in files)
        case _:
            raise AssertionError(f"no way to check {words}")


def require_options(package: Path, arguments: Sequence[str]) -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in package.glob("*.py"))
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert f'"{option}"' in sources, f"{package.name} has no option {option}"


@pytest.mark.parametrize("command", [command for command in ALL if not is_run(command)], ids=str)
def test_a_command_that_is_not_run_here_is_one_that_could_be(command: Command) -> None:
    require_valid(command.words)


def test_every_reason_not_to_run_is_still_needed() -> None:
    lines = [" ".join(command.words) for command in ALL]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines), f"no command begins as {pattern!r}"


@pytest.mark.parametrize("line", ["python -m experiments.run main|topk", "python train.py > log", "pytest; pytest"])
def test_a_line_that_a_shell_takes_for_more_than_a_command_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="one command a line"):
        commands_of("README.md", line)
    assert len(commands_of("README.md", f"pip install -e '.[test]' && tawin report 'RUN|2'  # {line}")) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("python", "train.py", "--grpo.no-such-option", "1"),
        ("tawin", "train", "--grpo.no-such-option", "1"),
        ("python", "-m", "bench.foundation", "--no-such-option"),
        ("python", "-m", "bench.no_such_module"),
        ("python", "-m", "experiments.run", "no-such-table"),
        ("torchrun", "--no-such-option", "train.py"),
        ("tawin", "recommend", "RUN", "--no-such-option"),
        ("pip", "install", "-e", ".[no-such-extra]"),
        ("make", "all"),
    ],
    ids=" ".join,
)
def test_a_command_that_could_not_run_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises((AssertionError, SystemExit, argparse.ArgumentError, ModuleNotFoundError)):
        require_valid(words)
