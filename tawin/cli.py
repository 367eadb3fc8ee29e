"""Command lines: the options of train.py, and the console script `tawin`, whose commands are in `commands/`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from .commands import evaluate, export, recommend, report
from .config import KS, Config
from .config_files import load_yaml
from .load import load_data
from .prepare import command as prepare
from .presets import PRESETS
from .run_folder import RunFolder

__all__ = ["COMMANDS", "TrainingOptions", "load_data", "main", "parse_training", "print_results"]

COMMANDS = (prepare, evaluate, recommend, export, report)
"""Modules with the `add_command` of one command each, as `tawin --help` lists them."""

_TRAINING_HELP = """Train a generative recommender: SFT, then GRPO with TAWin.

--preset {demo,cpu-small,paper}  where the defaults below come from (default: demo)
--config FILE.yaml  options that replace the preset's
--out FOLDER  the run folder: new or empty (default: runs/<preset>-<time>)
--resume  go on with the run in --out, with the config it was started with
--dry-run  print the plan (steps, tokens, memory, time by a few measured steps) and write nothing
"""


@dataclass(frozen=True)
class TrainingOptions:
    """What train.py was asked to do."""

    config: Config
    out: Path
    resume: bool
    dry_run: bool = False


def parse_training(arguments: Sequence[str]) -> TrainingOptions:
    """Preset, then YAML, then command line; with --resume the run's own config comes in place of the first two.

    Exits with status 2 and a message that names the option where one is unknown or wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="train.py")
    parser.add_argument("--preset", choices=tuple(PRESETS))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    first, rest = parser.parse_known_args(arguments)
    if first.resume and first.out is None:
        parser.error("--resume: expected --out FOLDER, the run to go on with")
    if first.resume and first.dry_run:
        parser.error("--dry-run: expected it without --resume; it plans a run from its start")
    try:
        if first.resume and first.preset is None and first.config is None:
            base = RunFolder.open(first.out).config
        else:
            base = PRESETS[first.preset or "demo"]
            if first.config is not None:
                base = load_yaml(first.config, base)
        config = tyro.cli(Config, default=base, args=rest, prog="train.py", description=_TRAINING_HELP)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    name = f"{first.preset or 'demo'}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainingOptions(config, first.out or Path("runs") / name, first.resume, first.dry_run)


def print_results(run: RunFolder) -> None:
    """The results table of a run, on the terminal."""
    results = run.results
    table = Table(title=f"{results['dataset']['name']}, test: Recall and NDCG")
    table.add_column("stage")
    for k in KS:
        table.add_column(f"R@{k}", justify="right")
    for k in KS[1:]:
        table.add_column(f"N@{k}", justify="right")
    for stage in ("sft", "grpo"):
        if stage in results:
            test = results[stage]["test"]
            recalls = [f"{test[f'recall@{k}']:.4f}" for k in KS]
            table.add_row(stage, *recalls, *(f"{test[f'ndcg@{k}']:.4f}" for k in KS[1:]))
    best = results.get("best_achievable")
    if best:
        table.add_row("best achievable", *(f"{best[str(k)]:.4f}" for k in KS), *("" for _ in KS[1:]))
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """What `tawin.__main__` runs. `arguments`: the command line without the program's name; None: the process's own.

    Ends with status 1 and a message where something is wrong, with 130 and one line after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="tawin", description="Look at and use the runs that train.py made.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        options.act(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
