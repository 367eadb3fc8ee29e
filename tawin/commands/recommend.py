"""`tawin recommend`: ranked items for one history on the terminal, or for a parquet file of histories into another."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..evaluate import recommend
from ..load import Serving, load_serving
from ..recommend_file import recommend_file
from ..source_ids import SourceIds, read_source_ids
from .arguments import Commands, add_exclude_history, add_stage, positive


def add_command(commands: Commands) -> None:
    command = commands.add_parser("recommend", help="ranked items for one history, or for a parquet file of histories")
    command.add_argument("run", type=Path, help="a run folder, or one that `tawin export` wrote")
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", help="item ids, oldest first: 12,55,83")
    command.add_argument(
        "--source-ids",
        type=Path,
        metavar="DATA",
        help="with --history: ids are those of the log that this data folder was prepared from",
    )
    asked.add_argument(
        "--histories", type=Path, metavar="FILE", help="parquet: item_ids (list, oldest first), user_id (optional)"
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="with --histories: the new parquet file, with item_ids and scores"
    )
    command.add_argument("--top", type=int, default=10, help="items a history (default: 10)")
    command.add_argument("--batch-size", type=positive, help="with --histories: of one search (default: the run's)")
    command.add_argument("--titles", action="store_true", help="with --histories: write the items' titles too")
    add_stage(command)
    add_exclude_history(command)
    command.set_defaults(act=_recommend)


def _recommend(options: argparse.Namespace) -> None:
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, got {options.top}")
    if options.histories is None:
        for name in ("out", "batch_size", "titles"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')}: expected it with --histories, not with --history")
        _print_one(options)
        return
    if options.source_ids is not None:
        raise ValueError("--source-ids: expected it with --history, not with --histories")
    if options.out is None:
        raise ValueError("--out: expected the parquet file to write to, with --histories")
    if options.out.exists():  # before the model is loaded
        raise ValueError(f"--out {options.out}: exists already; choose another file or remove it first")
    served = recommend_file(
        load_serving(options.run, options.stage),
        options.histories,
        options.out,
        top=options.top,
        batch_size=options.batch_size,
        exclude_history=options.exclude_history,
        titles=options.titles,
        progress=True,
    )
    print(
        f"{options.out}: {served.users:,} users in {served.seconds:.1f} s, "
        f"{served.users / max(served.seconds, 1e-9):,.0f} users/s"
    )
    if served.unknown_items:
        print(f"{served.unknown_items:,} items of histories are not in the catalogue and were left out")
    if served.empty_histories:
        print(f"{served.empty_histories:,} users have no known item in their history and got empty lists")


def _print_one(options: argparse.Namespace) -> None:
    sources = None if options.source_ids is None else read_source_ids(options.source_ids)
    item_ids = _item_ids(options.history, sources)
    serving = load_serving(options.run, options.stage)
    catalog = serving.catalog
    seen = np.array([catalog.index_of(item_id) for item_id in item_ids])
    history = seen[-serving.options.max_history :]
    table = Table(title="history: " + " | ".join(catalog.title(int(item)) for item in history))
    for name in ("rank", "item", "title", "log p"):
        table.add_column(name, justify="left" if name == "title" else "right")
    for rank, (item, score) in enumerate(_ranked(serving, seen, options), 1):
        item_id = int(catalog.item_ids[item])
        shown = str(item_id) if sources is None else sources.source_ids[item_id]
        table.add_row(str(rank), shown, catalog.title(item), f"{score:.4f}")
    Console(markup=False).print(table)


def _item_ids(history: str, sources: SourceIds | None) -> list[int]:
    if sources is not None:
        return [sources.item_id(part.strip()) for part in history.split(",")]
    try:
        return [int(part) for part in history.split(",")]
    except ValueError:
        raise ValueError(
            f"--history: expected item ids like 12,55,83, got {history!r}; --source-ids DATA takes those of the log"
        ) from None


def _ranked(serving: Serving, seen: np.ndarray, options: argparse.Namespace) -> list[tuple[int, float]]:
    """At most `--top` items and their log p, best first."""
    asked = serving.options.asked_for(options.top, exclude_history=options.exclude_history)
    history = seen[-serving.options.max_history :]
    found = recommend(serving.model, serving.catalog, [history], asked.evaluation, seen=[seen])
    pairs = zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
    return [(item, score) for item, score in pairs if item >= 0][: options.top]
