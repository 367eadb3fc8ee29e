"""`tawin evaluate`: valid and test figures of a run's best model, anew."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..data.digest import read_origin, require_same_data
from ..evaluate.ranking import evaluate, sampled
from ..run.folder import RunFolder
from ..serve.load import load_data, load_serving
from .arguments import Commands, add_exclude_history, add_stage, positive


def add_command(commands: Commands) -> None:
    command = commands.add_parser("evaluate", help="valid and test figures of a run's best model, anew")
    command.add_argument("run", type=Path)
    add_stage(command)
    command.add_argument("--data", help="where the data that the run was trained on is now (default: where it was)")
    command.add_argument("--users", type=positive, help="users to evaluate, sampled with the run's seed (default: all)")
    command.add_argument("--beam-width", type=positive, help="beams (default: the run's)")
    add_exclude_history(command)
    command.set_defaults(act=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    run = RunFolder.open(options.run)
    config = run.config
    serving = load_serving(run.path, options.stage)
    evaluation = dataclasses.replace(
        serving.options.evaluation,
        beam_width=options.beam_width or config.evaluation.beam_width,
        exclude_history="yes" if options.exclude_history else serving.options.evaluation.exclude_history,
    )
    model, catalog = serving.model, serving.catalog
    folder = options.data or config.data
    dataset, split = load_data(dataclasses.replace(config, data=folder), catalog)
    require_same_data(dataset, read_origin(run.catalog), f"--data {folder}")
    for part in ("valid", "test"):
        examples = sampled(getattr(split, part), options.users, config.seed)
        figures = evaluate(model, catalog, examples, evaluation, description=part, progress=True)
        print(
            f"{part} ({len(examples):,} users): " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        )
