"""`tawin recommend`: ranked items for a history."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..evaluate import recommend
from ..load import load_run
from ..run_folder import RunFolder
from .arguments import Commands, add_exclude_history, add_stage


def add_command(commands: Commands) -> None:
    command = commands.add_parser("recommend", help="ranked items for one history")
    command.add_argument("run", type=Path)
    command.add_argument("--history", required=True, help="item ids, oldest first: 12,55,83")
    command.add_argument("--top", type=int, default=10, help="items to print (default: 10)")
    add_stage(command)
    add_exclude_history(command)
    command.set_defaults(act=_recommend)


def _recommend(options: argparse.Namespace) -> None:
    try:
        item_ids = [int(part) for part in options.history.split(",")]
    except ValueError:
        raise ValueError(f"--history: expected item ids like 12,55,83, got {options.history!r}") from None
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, got {options.top}")
    run = RunFolder.open(options.run)
    model, catalog = load_run(run, options.stage)
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
