"""`tawin score`: the exact log p of given items behind each history of a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..serve.load import load_serving
from ..serve.recommend import require_out
from ..serve.score import score_file
from .arguments import Commands, add_stage, positive


def add_command(commands: Commands) -> None:
    command = commands.add_parser("score", help="the exact log p of given items behind each history of a file")
    command.add_argument("run", type=Path, help="a run folder, or one that `tawin export` wrote")
    command.add_argument(
        "--histories",
        type=Path,
        metavar="FILE",
        required=True,
        help="parquet: item_ids (list, oldest first), user_id (optional); csv: user_id,item_id, oldest first",
    )
    command.add_argument(
        "--candidates",
        type=Path,
        metavar="FILE",
        required=True,
        help="the same kind of file, the same users in the same order; one row in all: for every user",
    )
    command.add_argument("--out", type=Path, metavar="FILE", required=True, help="the new file, .parquet or .csv")
    command.add_argument("--batch-size", type=positive, help="histories of one forward (default: the run's)")
    add_stage(command)
    command.set_defaults(act=_score)


def _score(options: argparse.Namespace) -> None:
    require_out(options.out)  # before the model is loaded
    scored = score_file(
        load_serving(options.run, options.stage),
        options.histories,
        options.candidates,
        options.out,
        batch_size=options.batch_size,
        progress=True,
    )
    print(f"{options.out}: {scored.scores:,} scores of {scored.users:,} users")
    if scored.unknown_items:
        print(f"{scored.unknown_items:,} items of histories are not in the catalogue and were left out")
    if scored.unknown_candidates:
        print(f"{scored.unknown_candidates:,} candidates are not in the catalogue and were left out")
    if scored.empty_histories:
        print(f"{scored.empty_histories:,} users have no known item in their history and got empty lists")
