"""`tawin recommend`: ranked items for one history on the terminal, or for a file of histories into another."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..catalog.catalog import Catalog
from ..data.columns import read_integers, read_source_ids, read_table
from ..data.dataset import ITEMS_FILE
from ..evaluate.ranking import recommend
from ..serve.histories import rows_of_folder
from ..serve.load import Serving, load_serving
from ..serve.narrow import allowed_items
from ..serve.parts import Request, recommend_in_parts
from ..serve.recommend import Served, recommend_file, require_out
from .arguments import Commands, add_exclude_history, add_stage, positive


def add_command(commands: Commands) -> None:
    command = commands.add_parser("recommend", help="ranked items for one history, or for a file of histories")
    command.add_argument("run", type=Path, help="a run folder, or one that `tawin export` wrote")
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", help="the log's own item ids, oldest first: 12,55,83")
    command.add_argument(
        "--source-ids",
        type=Path,
        metavar="DATA",
        help="the data folder that the run was trained on, or one prepared anew from its log: what numbers in "
        "--histories mean, and for runs of earlier versions the log's own ids; others know these themselves",
    )
    asked.add_argument(
        "--histories",
        type=Path,
        metavar="FILE",
        help="parquet: item_ids (list, oldest first), user_id (optional); csv: user_id,item_id, oldest first",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="with --histories: the new file, .parquet or .csv")
    command.add_argument("--top", type=int, default=10, help="items a history (default: 10)")
    command.add_argument("--batch-size", type=positive, help="with --histories: of one search (default: the run's)")
    command.add_argument(
        "--processes",
        type=positive,
        help="with --histories: on so many processes with a thread each, and the same command goes on after a stop",
    )
    command.add_argument("--titles", action="store_true", help="with --histories: write the items' titles too")
    command.add_argument(
        "--where",
        metavar="CONDITION",
        help="only items that fit it: \"category = 'shoes' and price < 100\"; columns are those of the items' file",
    )
    command.add_argument("--leave-out", type=Path, metavar="FILE", help="items never to recommend, an id a line")
    add_stage(command)
    add_exclude_history(command)
    command.set_defaults(act=_recommend)


def _recommend(options: argparse.Namespace) -> None:
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, got {options.top}")
    if options.histories is None:
        for name in ("out", "batch_size", "titles", "processes"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')}: expected it with --histories, not with --history")
        _print_one(options)
        return
    if options.out is None:
        raise ValueError("--out: expected the file to write to, .parquet or .csv, with --histories")
    require_out(options.out)  # before the model is loaded
    started = time.monotonic()
    served = (
        _in_parts(options)
        if options.processes
        else recommend_file(
            _serving(options),
            options.histories,
            options.out,
            top=options.top,
            batch_size=options.batch_size,
            exclude_history=options.exclude_history,
            titles=options.titles,
            numbers=options.source_ids,
            progress=True,
        )
    )
    seconds = time.monotonic() - started if options.processes else served.seconds
    rate = (served.users - served.known_before) / max(seconds, 1e-9)
    print(f"{options.out}: {served.users:,} users in {seconds:.1f} s, {rate:,.0f} users/s")
    if served.known_before:
        print(f"{served.known_before:,} of them were done before the command was stopped")
    if served.unknown_items:
        print(f"{served.unknown_items:,} items of histories are not in the catalogue and were left out")
    if served.empty_histories:
        print(f"{served.empty_histories:,} users have no known item in their history and got empty lists")
    if served.null_histories:
        print(f"note: the history of {served.null_histories:,} of them is null, which was read as an empty one")


def _in_parts(options: argparse.Namespace) -> Served:
    request = Request(
        options.run,
        stage=options.stage,
        top=options.top,
        batch_size=options.batch_size,
        exclude_history=options.exclude_history,
        titles=options.titles,
        where=options.where,
        leave_out=options.leave_out,
    )
    return recommend_in_parts(
        request,
        options.histories,
        options.out,
        processes=options.processes,
        numbers=options.source_ids,
        progress=True,
    )


def _serving(options: argparse.Namespace) -> Serving:
    serving = load_serving(options.run, options.stage)
    return dataclasses.replace(serving, among=allowed_items(serving.catalog, options.where, options.leave_out))


def _print_one(options: argparse.Namespace) -> None:
    serving = _serving(options)
    catalog = serving.catalog
    if options.source_ids is not None:
        catalog = _with_source_ids(catalog, options.source_ids)
    seen = _items(options.history, catalog)
    history = seen[-serving.options.max_history :]
    table = Table(title="history: " + " | ".join(catalog.title(int(item)) for item in history))
    for name in ("rank", "item", "title", "log p"):
        table.add_column(name, justify="left" if name == "title" else "right")
    for rank, (item, score) in enumerate(_ranked(serving, seen, options), 1):
        table.add_row(str(rank), catalog.names[item], catalog.title(item), f"{score:.4f}")
    Console(markup=False).print(table)


def _with_source_ids(catalog: Catalog, folder: Path) -> Catalog:
    """The catalogue with the log's own ids that a data folder has; DataError where that has other items."""
    path = folder / ITEMS_FILE
    table = read_table(path, required=("item_id", "source_id"))
    rows = rows_of_folder(catalog, read_integers(table, "item_id", path), table, folder)
    if catalog.source_ids is not None:
        return catalog
    sources = read_source_ids(table, path) or []
    named = dict(zip(rows.tolist(), sources, strict=True))
    return dataclasses.replace(catalog, source_ids=[named[row] for row in range(catalog.num_items)])


def _items(history: str, catalog: Catalog) -> np.ndarray:
    """int64, the catalogue's rows. Ids stand between commas; one that holds a comma is quoted, as in csv."""
    (ids,) = csv.reader([history], skipinitialspace=True)
    try:
        return np.array([catalog.index_of(each.strip()) for each in ids])
    except ValueError as error:
        raise ValueError(f"--history: {error}") from None


def _ranked(serving: Serving, seen: np.ndarray, options: argparse.Namespace) -> list[tuple[int, float]]:
    """At most `--top` items and their log p, best first."""
    asked = serving.options.asked_for(options.top, exclude_history=options.exclude_history)
    history = seen[-serving.options.max_history :]
    found = recommend(serving.model, serving.catalog, [history], asked.evaluation, seen=[seen], among=serving.among)
    pairs = zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
    return [(item, score) for item, score in pairs if item >= 0][: options.top]
