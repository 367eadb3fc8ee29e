"""`tawin evaluate`: valid and test figures of a run's best model, anew, or figures on a later log."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np

from ..catalog.catalog import Catalog
from ..config import EvaluationConfig
from ..data.digest import read_origin, require_same_data
from ..data.ragged import Ragged
from ..data.source_ids import places_of
from ..evaluate.baselines import POPULARITY, build_baselines
from ..evaluate.ranking import ranks_of, sampled
from ..metrics import ranking_metrics
from ..run.folder import RunFolder
from ..serve.load import evaluation_of, load_data, load_serving
from ..train.later import Unknown, evaluate_later
from .arguments import Commands, add_exclude_history, add_stage, positive

_DONE = {"count": "a miss", "leave_out": "in no figure", "extend": "ranked by the tokens that it gets"}


def add_command(commands: Commands) -> None:
    command = commands.add_parser("evaluate", help="valid and test figures of a run's best model, anew")
    command.add_argument("run", type=Path)
    add_stage(command)
    command.add_argument("--data", help="where the data that the run was trained on is now (default: where it was)")
    command.add_argument(
        "--unknown",
        choices=get_args(Unknown),
        help="--data is a later log, with items that the run does not know: count such a target as a miss, leave its "
        "user out, or extend the run by them, without training; figures are of users who did something since",
    )
    command.add_argument("--vectors", help="with --unknown extend: item vectors, as catalog.vectors, of the later log")
    command.add_argument(
        "--since", type=Path, metavar="RUN", help="figures apart of items that RUN knows, and does not"
    )
    command.add_argument("--users", type=positive, help="users to evaluate, sampled with the run's seed (default: all)")
    command.add_argument("--beam-width", type=positive, help="beams (default: the run's)")
    add_exclude_history(command)
    command.set_defaults(act=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    run = RunFolder.open(options.run)
    config = run.config
    if options.unknown is not None:
        return _print_later(run, options)
    if options.vectors is not None:
        raise ValueError("--vectors: expected it with --unknown extend, got neither")
    if config.split.method == "none":
        raise ValueError(
            f"{run.path}: expected a run with a split, got one that was trained on everything (split.method none): "
            "name a later log by --data and --unknown"
        )
    serving = load_serving(run.path, options.stage)
    evaluation = _asked_for(serving.options.evaluation, options)
    model, catalog = serving.model, serving.catalog
    folder = options.data or config.data
    dataset, split = load_data(dataclasses.replace(config, data=folder), catalog)
    require_same_data(dataset, read_origin(run.catalog), f"--data {folder}")
    for part in ("valid", "test"):
        examples = sampled(getattr(split, part), options.users, config.seed)
        ranks = ranks_of(model, catalog, examples, evaluation, description=part, progress=True)
        _print(part, ranks)
        if options.since is not None:
            baselines = build_baselines(Ragged.of(split.training), catalog.num_items)
            by_popularity = baselines.ranks(POPULARITY, examples, exclude_history=evaluation.excludes_history)
            is_new = places_of(catalog.names, Catalog.load(RunFolder.open(options.since).catalog).names) < 0
            for name, chosen in (("known to", ~is_new), ("new since", is_new)):
                rows = chosen[examples.targets]
                _print(f"{part}, items {name} {options.since}", ranks[rows])
                _print("  popularity, for the same", by_popularity[rows])


def _asked_for(evaluation: EvaluationConfig, options: argparse.Namespace) -> EvaluationConfig:
    return dataclasses.replace(
        evaluation,
        beam_width=options.beam_width or evaluation.beam_width,
        exclude_history="yes" if options.exclude_history else evaluation.exclude_history,
    )


def _print_later(run: RunFolder, options: argparse.Namespace) -> None:
    if options.data is None:
        raise ValueError("--unknown: expected --data, the later log, with it, got none")
    found = evaluate_later(
        run,
        options.data,
        options.unknown,
        stage=options.stage,
        users=options.users,
        evaluation=_asked_for(evaluation_of(run), options),
        vectors=options.vectors,
        progress=True,
    )
    items = found.items
    print(
        f"{options.data}: {items['known']:,} items that the run knows, {items['new']:,} that it does not, "
        f"{items['gone']:,} of the run's are gone"
    )
    if found.nothing_new is None:
        print("note: the run's own log is not where it was: users who did nothing since are in the figures")
    else:
        print(f"{found.nothing_new:,} users did nothing since the run's own log and are in no figure")
    print(
        f"{found.known_users:,} users took an item that the run knows, {found.new_users:,} one that it does not: "
        f"{_DONE[options.unknown]}"
    )
    print(f"{found.without_history:,} users have no known item in their history")
    _print("all", found.ranks)
    _print("items that the run knows", found.ranks[~found.is_new])
    _print("items that it does not", found.ranks[found.is_new])


def _print(name: str, ranks: np.ndarray) -> None:
    figures = ranking_metrics(ranks) if len(ranks) else {}
    print(f"{name} ({len(ranks):,} users): " + "  ".join(f"{metric} {value:.4f}" for metric, value in figures.items()))
