"""Command lines: the options of train.py, and the console script `tawin` (evaluate, recommend, report)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from .catalog import Catalog
from .config import KS, PRESETS, Config, load_yaml
from .data import Dataset, Split, load_dataset, split_leave_one_out
from .evaluate import evaluate, recommend, sampled
from .policy import load_model
from .report import write_report
from .run_folder import RunFolder
from .synthetic import make_synthetic

_TRAINING_HELP = """Train a generative recommender: SFT, then GRPO with TAWin.

--preset {demo,cpu-small,paper}  where the defaults below come from (default: demo)
--config FILE.yaml  options that replace the preset's
--out FOLDER  the run folder: new or empty (default: runs/<preset>-<time>)
--resume  go on with the run in --out, with the config it was started with
"""


@dataclass(frozen=True)
class TrainingOptions:
    """What train.py was asked to do."""

    config: Config
    out: Path
    resume: bool


def parse_training(arguments: Sequence[str]) -> TrainingOptions:
    """Preset, then YAML, then command line; with --resume the run's own config comes in place of the first two.

    Exits with status 2 and a message that names the option where one is unknown or wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="train.py")
    parser.add_argument("--preset", choices=tuple(PRESETS))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    first, rest = parser.parse_known_args(arguments)
    if first.resume and first.out is None:
        parser.error("--resume: expected --out FOLDER, the run to go on with")
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
    return TrainingOptions(config, first.out or Path("runs") / name, first.resume)


def load_data(config: Config) -> tuple[Dataset, Split]:
    """The data of a run, or the synthetic catalogue, and its split."""
    if config.data:
        dataset = load_dataset(config.data, memory_map=config.data_cache)
    else:
        dataset = make_synthetic(config.synthetic, config.seed)
    return dataset, split_leave_one_out(
        dataset,
        max_history=config.split.max_history,
        rl_share=config.split.rl_share,
        rl_targets=config.split.rl_targets,
        seed=config.seed,
    )


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
    """The console script. `arguments`: the command line without the program's name; None: the process's own."""
    parser = argparse.ArgumentParser(prog="tawin", description="Look at and use the runs that train.py made.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("evaluate", help="valid and test figures of a run's best model, anew")
    command.add_argument("run", type=Path)
    command.add_argument("--stage", choices=("sft", "grpo"), default="grpo")
    command.add_argument("--data", help="data folder, where it is no longer the one that the run was trained on")
    command.add_argument(
        "--users", type=_positive, help="users to evaluate, sampled with the run's seed (default: all)"
    )
    command.add_argument("--beam-width", type=_positive, help="beams (default: the run's)")
    command.add_argument("--exclude-history", action="store_true", help="never recommend an item of the history")
    command.set_defaults(act=_evaluate)

    command = commands.add_parser("recommend", help="ranked items for one history")
    command.add_argument("run", type=Path)
    command.add_argument("--history", required=True, help="item ids, oldest first: 12,55,83")
    command.add_argument("--top", type=int, default=10, help="items to print (default: 10)")
    command.add_argument("--stage", choices=("sft", "grpo"), default="grpo")
    command.add_argument("--exclude-history", action="store_true", help="never recommend an item of the history")
    command.set_defaults(act=_recommend)

    command = commands.add_parser("report", help="one HTML page and PNGs, several runs side by side")
    command.add_argument("run", type=Path, nargs="+")
    command.add_argument("--out", type=Path, help="folder of the report (default: the first run's)")
    command.set_defaults(act=_report)

    options = parser.parse_args(arguments)
    try:
        options.act(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _evaluate(options: argparse.Namespace) -> None:
    run = RunFolder.open(options.run)
    config = run.config
    evaluation = dataclasses.replace(
        config.evaluation,
        beam_width=options.beam_width or config.evaluation.beam_width,
        exclude_history=options.exclude_history or config.evaluation.exclude_history,
    )
    model, catalog = _load_run(run, options.stage)
    folder = options.data or config.data
    dataset, split = load_data(dataclasses.replace(config, data=folder))
    if not np.array_equal(dataset.items.item_ids, catalog.item_ids):
        raise ValueError(f"--data {folder}: expected the items that the run was trained on, got others")
    for part in ("valid", "test"):
        examples = sampled(getattr(split, part), options.users, config.seed)
        figures = evaluate(model, catalog, examples, evaluation, description=part, progress=True)
        print(
            f"{part} ({len(examples):,} users): " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        )


def _recommend(options: argparse.Namespace) -> None:
    try:
        item_ids = [int(part) for part in options.history.split(",")]
    except ValueError:
        raise ValueError(f"--history: expected item ids like 12,55,83, got {options.history!r}") from None
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, got {options.top}")
    run = RunFolder.open(options.run)
    model, catalog = _load_run(run, options.stage)
    history = np.array([catalog.index_of(item_id) for item_id in item_ids])[-run.config.split.max_history :]
    evaluation = dataclasses.replace(
        run.config.evaluation,
        beam_width=max(run.config.evaluation.beam_width, options.top),
        exclude_history=options.exclude_history or run.config.evaluation.exclude_history,
    )
    found = recommend(model, catalog, [history], evaluation)
    table = Table(title="history: " + " | ".join(catalog.title(int(item)) for item in history))
    for name in ("rank", "item", "title", "log p"):
        table.add_column(name, justify="left" if name == "title" else "right")
    for rank, (item, score) in enumerate(zip(found.items[0], found.scores[0], strict=True), 1):
        if item < 0 or rank > options.top:
            break
        table.add_row(str(rank), str(catalog.item_ids[item]), catalog.title(int(item)), f"{score:.4f}")
    Console(markup=False).print(table)


def _report(options: argparse.Namespace) -> None:
    print(write_report(options.run, options.out or options.run[0]))


def _load_run(run: RunFolder, stage: str) -> tuple[nn.Module, Catalog]:
    folder = run.checkpoints / stage
    if not (folder / "config.json").exists():
        raise ValueError(f"{run.path}: expected a finished {stage} stage (checkpoints/{stage}), found none yet")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(folder).to(device).eval(), Catalog.load(run.catalog).to(device)
