"""`tawin prepare FORMAT SOURCE FOLDER`: the command line of `prepare`, and what it says when it is done."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any, get_args

from ..prepare.clean import Duplicates
from ..prepare.job import FORMATS, prepare
from ..prepare.source import Columns, Format, Options
from ..prepare.times import Unit

_COLUMNS = ("user", "item", "time", "rating")
_MISSING = {"without_user": "without a user", "without_item": "without an item"}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `prepare`, with a command of its own for each format."""
    command = commands.add_parser("prepare", help="make a data folder from a log or a public data set")
    formats = command.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for each in FORMATS.values():
        _add_format(formats, each)


def _add_format(formats: argparse._SubParsersAction, chosen: Format) -> None:
    command = formats.add_parser(chosen.name, help=chosen.summary, description=chosen.summary)
    command.add_argument("source", type=Path, metavar="SOURCE", help="file or folder; .gz is read as it is")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="the data folder to make: new or empty")
    command.add_argument("--items", type=Path, help="the file with the items' titles, where it is not in SOURCE")
    if chosen.has_categories:
        command.add_argument("--category", help="part of the file names, where SOURCE holds several data sets")
    command.add_argument(
        "--min-interactions",
        type=int,
        help="k-core: of each user and each item, found again and again until all have them "
        f"(default: {chosen.min_interactions})",
    )
    command.add_argument("--min-rating", type=float, help="leave out interactions with a lower rating")
    command.add_argument("--after", metavar="DATE", help="leave out what is earlier (2016-10-01, UTC)")
    command.add_argument("--before", metavar="DATE", help="leave out what is of that time or later")
    command.add_argument(
        "--duplicates",
        "--dedup",
        choices=get_args(Duplicates),
        help="keep all, drop repeats of user, item and time, keep the first or the last of user and item, or drop "
        "what repeats the item before it "
        f"(default: {chosen.duplicates})",
    )
    command.add_argument(
        "--keep-unseen-items",
        action="store_true",
        help="keep items that are described but that nobody, or too few, took: they can be recommended from their text",
    )
    command.add_argument(
        "--max-malformed",
        type=float,
        default=Options.max_malformed,
        help=f"share of a file's lines that may be malformed (default: {Options.max_malformed})",
    )
    if chosen.has_columns:
        _add_columns(command)
    if chosen.has_columns or chosen.has_item_table:
        _add_item_columns(command)
    command.set_defaults(act=_prepare)


def _add_columns(command: argparse.ArgumentParser) -> None:
    for name in _COLUMNS:
        command.add_argument(f"--{name}-column", help="its name, where it is none of the usual ones")
    command.add_argument(
        "--event-column", metavar="NAME", help="the column that says what happened; with --keep or --weights"
    )
    command.add_argument("--keep", metavar="EVENTS", help="the events of --event-column that count: purchase,cart")
    command.add_argument(
        "--weights",
        metavar="EVENTS",
        help="in place of --keep, events and how much they count in training: view=.2,cart=.5,purchase=1",
    )
    command.add_argument("--no-times", action="store_true", help="there is no time: the rows stand oldest first")
    command.add_argument("--time-unit", choices=get_args(Unit), default="auto", help="of numbers since 1970")
    command.add_argument(
        "--time-format",
        metavar="FORMAT",
        help="as strptime has it: '%%d/%%m/%%Y %%H:%%M' (default: ISO dates, 13.09.2020, 9/13/2020 8:26, 20180707, day "
        "numbers of spreadsheets and seconds to nanoseconds since 1970 are told apart)",
    )
    command.add_argument(
        "--no-header",
        action="store_true",
        help="csv: the first row is data; columns go by number, 1 user, 2 item, 3 time",
    )
    command.add_argument("--delimiter", help="csv: default: the one of , ; | tab that the first line has most of")


def _add_item_columns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--title-column", help="of --items, where it is none of the usual ones")
    command.add_argument("--items-item-column", help="the column with the items' ids in --items, likewise")
    command.add_argument("--items-delimiter", help="of --items, a csv; default: found as for the log")


def _prepare(options: argparse.Namespace) -> None:
    given = vars(options)
    columns = Columns(
        title=given.get("title_column"),
        items_item=given.get("items_item_column"),
        items_delimiter=given.get("items_delimiter"),
    )
    if FORMATS[options.format].has_columns:
        columns = dataclasses.replace(
            columns,
            **{name: given[f"{name}_column"] for name in _COLUMNS},
            event=options.event_column,
            has_header=not options.no_header,
            has_times=not options.no_times,
            delimiter=options.delimiter,
            time_unit=options.time_unit,
            time_format=options.time_format,
        )
    chosen = Options(
        items=options.items,
        category=given.get("category"),
        min_interactions=options.min_interactions,
        duplicates=options.duplicates,
        min_rating=options.min_rating,
        keep=_events(given.get("keep")),
        weights=_weights(given.get("weights")),
        after=options.after,
        before=options.before,
        keep_unseen_items=options.keep_unseen_items or None,
        max_malformed=options.max_malformed,
        columns=columns,
    )
    report = prepare(options.format, options.source, options.folder, chosen, progress=True)
    print(summary(report, options.folder))


def _events(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(each.strip() for each in text.split(","))


def _weights(text: str | None) -> dict[str, float] | None:
    """Of view=.2,purchase=1. ValueError for anything else."""
    if text is None:
        return None
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name.strip() or math.isnan(weight) or name.strip() in found:
            raise ValueError(
                f"--weights: expected each event once with a number, as in view=.2,purchase=1, got {text!r}"
            )
        found[name.strip()] = weight
    return found


def summary(report: dict[str, Any], folder: Path) -> str:
    """What was read, what was left out and why, and what to run next."""
    counts, lines = report["counts"], []
    for file in report["files"]:
        unit = "lines" if "lines" in file else "rows"
        missing = [f", {file[key]:,} {said}" for key, said in _MISSING.items() if key in file]
        lines.append(f"{file['file']}: {file[unit]:,} {unit}, {file['malformed']:,} malformed{''.join(missing)}")
    lines += [f"  malformed: {example}" for example in report["malformed"]]
    left_out = {
        "below --min-rating": counts["below_min_rating"],
        "outside --after and --before": counts["outside_dates"],
        "duplicates": counts["duplicates"],
        **{f"{name!r}": count for name, count in counts.get("other_events", {}).items()},
    }
    lines.append(f"{counts['read']:,} interactions" + "".join(f", {n:,} {why}" for why, n in left_out.items() if n))
    times = report["times"]
    if times is not None:
        lines.append(f"times: {times['first']} to {times['last']} UTC, read as {times['read_as']}")
    before, after = counts["before_k_core"], counts["after_k_core"]
    if before != after:
        lines.append(f"{report['options']['min_interactions']}-core: from {_sizes(before)}")
    catalogue = f"{counts['items_in_catalogue']:,} items in the catalogue, {counts['titles']:,} titles"
    lines.append(f"{folder}: {_sizes(after)}; {catalogue}")
    lines += [f"note: {note}" for note in report["notes"]]
    lines.append(f"next: tawin train --preset cpu-small --data {shlex.quote(str(folder))} --out RUN")
    return "\n".join(lines)


def _sizes(sizes: dict[str, int]) -> str:
    return f"{sizes['users']:,} users, {sizes['items']:,} items, {sizes['interactions']:,} interactions"
