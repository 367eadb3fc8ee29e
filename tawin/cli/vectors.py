"""`tawin vectors`: items and users as vectors of a run's best model, to .parquet or .npy."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..serve.load import load_serving
from ..serve.vectors import require_vectors_out, write_item_vectors, write_user_vectors
from .arguments import Commands, add_stage


def add_command(commands: Commands) -> None:
    command = commands.add_parser("vectors", help="items and users as vectors, to .parquet or .npy")
    command.add_argument("run", type=Path, help="a run folder, or one that `tawin export` wrote")
    command.add_argument("--items", type=Path, metavar="FILE", help="the new file of all items' vectors")
    command.add_argument("--users", type=Path, metavar="FILE", help="the new file of the histories' vectors")
    command.add_argument("--histories", type=Path, metavar="FILE", help="with --users: as in `tawin recommend`")
    add_stage(command)
    command.set_defaults(act=_vectors)


def _vectors(options: argparse.Namespace) -> None:
    if options.items is None and options.users is None:
        raise ValueError("--items, --users: expected at least one of them, got none")
    if (options.users is None) != (options.histories is None):
        raise ValueError("--users, --histories: expected both or none of them, got one")
    for name in ("items", "users"):
        if getattr(options, name) is not None:
            require_vectors_out(getattr(options, name), f"--{name}")
    serving = load_serving(options.run, options.stage)
    if options.items is not None:
        rows, size = write_item_vectors(serving, options.items)
        kind = "rows of the LM head" if serving.catalog.max_item_length == 1 else "states behind each item alone"
        print(f"{options.items}: {rows:,} items, {size} numbers each, {kind}")
    if options.users is not None:
        rows, size = write_user_vectors(serving, options.histories, options.users, progress=True)
        print(f"{options.users}: {rows:,} users, {size} numbers each; 0 where no item of the history is known")
