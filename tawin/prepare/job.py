"""`prepare`: a source in one of the formats becomes a data folder that `tawin.data.dataset.load_dataset` reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.columns import DataError
from ..data.interactions import MIN_ITEMS
from .clean import Duplicates, k_core, largest_of_repeats, not_repeated, order_by_time, renumber
from .dates import date_text
from .formats import FORMATS
from .ids import MISSING_TITLES
from .log import Log, Selection
from .readers.item_columns import read_other_columns
from .readers.lines import Reading
from .source import Columns, Options, Source, date_option
from .write import Prepared, numbering_notes, require_new, write_folder

OTHER_EVENTS = 20  # kinds that are left out and named
_1990 = 631_152_000_000  # milliseconds since 1970


@dataclass(frozen=True, eq=False)
class _Kept:
    """Interactions in order, with the codes of the log."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    weights: np.ndarray | None

    def take(self, rows: np.ndarray) -> _Kept:
        times, weights = (None if each is None else each[rows] for each in (self.times, self.weights))
        return _Kept(self.users[rows], self.items[rows], times, weights)

    def without_repeats(self, duplicates: Duplicates) -> _Kept:
        """Of rows in order, see `not_repeated`; what stays has the largest weight of those that it stands for."""
        rows, kept = (self.users, self.items, self.times), self
        if self.weights is not None:
            kept = dataclasses.replace(self, weights=largest_of_repeats(self.weights, *rows, duplicates))
        return kept.take(not_repeated(*rows, duplicates))

    def sizes(self) -> dict[str, int]:
        users, items = (int(np.count_nonzero(np.bincount(codes))) for codes in (self.users, self.items))
        return {"users": users, "items": items, "interactions": len(self.users)}


def prepare(
    format_name: str, source: Path, folder: Path, options: Options | None = None, *, progress: bool = False
) -> dict[str, Any]:
    """Reads `source`, filters it and writes `folder`, all of it or nothing. What was done comes back as prepare.json.

    Raises:
        DataError: the folder holds files already; files that are missing, cut off or of another format; more malformed
            lines than are allowed; nothing, or nobody with three items, is left.
        ValueError: an unknown format, or an option out of range.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format_name!r}")
    chosen, options = FORMATS[format_name], options or Options()
    minimum = chosen.min_interactions if options.min_interactions is None else options.min_interactions
    duplicates = options.duplicates or chosen.duplicates
    require_new(folder)
    opened = chosen.open(source, options)
    reading = Reading(max_malformed=options.max_malformed, progress=progress)
    after, before = date_option("--after", options.after), date_option("--before", options.before)
    kinds = options.keep if options.weights is None else options.weights
    events = None if kinds is None else frozenset(kinds)
    log = Log(Selection(options.min_rating, events, options.weights, after, before))
    opened.read_log(reading, log)
    kept, counts = _filter(log, minimum, duplicates, source, reading)
    times = _times(log, reading)
    keeps_unseen = chosen.keeps_unseen_items or bool(options.keep_unseen_items)
    columns = options.columns if chosen.has_columns else None
    prepared = _described(kept, log, opened, reading, keeps_unseen=keeps_unseen, columns=columns)
    report = {
        "format": format_name,
        "source": source.name,
        "files": [count.as_dict(source) for count in reading.files],
        "options": _given(options) | {"min_interactions": minimum, "duplicates": duplicates},
        "counts": counts | {"items_in_catalogue": len(prepared.item_sources), "titles": _titles(prepared)},
        "times": times,
        "malformed": reading.examples,
        "notes": [*reading.notes, *numbering_notes(prepared)],
    }
    write_folder(prepared, report, folder)
    return report


def _filter(
    log: Log, minimum: int, duplicates: Duplicates, source: Path, reading: Reading
) -> tuple[_Kept, dict[str, Any]]:
    missing = {f"without_{name}": sum(count.missing[name] for count in reading.files) for name in ("user", "item")}
    left_out = (
        f"{missing['without_user']:,} without a user, {missing['without_item']:,} without an item, "
        f"{sum(count.malformed for count in reading.files):,} malformed"
    )
    if len(log) == 0:
        raise DataError(
            f"{source}: expected interactions, got none ({log.rows:,} read, {log.below_min_rating:,} below "
            f"--min-rating, {log.outside_dates:,} outside --after and --before{_other_events(log)}; {left_out})"
            f"{reading.reasons()}"
        )
    kept = _Kept(*log.arrays())  # one name for all stages: what a stage was made from is not held any longer
    kept = kept.take(order_by_time(kept.users, kept.times))
    kept = kept.without_repeats(duplicates)
    before = kept.sizes()
    kept = kept.take(k_core(kept.users, kept.items, minimum))
    counts = {
        "read": log.rows,
        **missing,
        "below_min_rating": log.below_min_rating,
        "outside_dates": log.outside_dates,
        **({"other_events": dict(log.other_events.most_common(OTHER_EVENTS))} if log.wants_event else {}),
        "duplicates": len(log) - before["interactions"],
        "before_k_core": before,
        "after_k_core": kept.sizes(),
    }
    if len(kept.users) == 0 or np.bincount(kept.users).max() < MIN_ITEMS:
        raise DataError(
            f"{source}: expected users with at least {MIN_ITEMS} items, got none: of {before['interactions']:,} "
            f"interactions of {before['users']:,} users with {before['items']:,} items {len(kept.users):,} are left "
            f"where each user and item has to have {minimum} (--min-interactions); left out before: {left_out}"
            f"{reading.reasons()}"
        )
    return kept, counts


def _other_events(log: Log) -> str:
    """How many are of which other event, as it ends a list; nothing where all events are wanted."""
    counts = log.other_events.most_common(OTHER_EVENTS)
    return "" if not counts else f", not kept: {', '.join(f'{name!r} {count:,}' for name, count in counts)}"


def _times(log: Log, reading: Reading) -> dict[str, Any] | None:
    """What the times were taken for and from when to when they are; None without. Those before 1990 get a note."""
    times = log.arrays()[2]
    if times is None or log.time_reader is None:
        return None
    read_as, early = log.time_reader.name, times[times < _1990]
    if len(early):
        first, last = (date_text(int(each)) for each in (early.min(), early.max()))
        reading.notes.append(
            f"{len(early):,} of {len(times):,} times lie before 1990, from {first} to {last}: the times are read as "
            f"{read_as}, and may be something else"
        )
    return {"read_as": read_as, "first": date_text(int(times.min())), "last": date_text(int(times.max()))}


def _described(
    kept: _Kept, log: Log, source: Source, reading: Reading, *, keeps_unseen: bool, columns: Columns | None
) -> Prepared:
    user_codes, users = renumber(kept.users)
    item_codes, items = renumber(kept.items)
    user_names, item_names = list(log.users), list(log.items)
    item_sources = [item_names[code] for code in item_codes]
    places = {name: place for place, name in enumerate(item_sources)}
    titles: list[str | None] = [None] * len(item_sources)
    semantic_ids: list[tuple[int, ...] | None] = [None] * len(item_sources)
    described: set[str] = set()
    example = None
    for item in source.read_items(reading):
        example = example or item.source_id
        if item.source_id in log.items:
            described.add(item.source_id)
        place = places.get(item.source_id)
        if place is None:
            if not keeps_unseen:
                continue
            place = places[item.source_id] = len(item_sources)
            item_sources.append(item.source_id)
            titles.append(None)
            semantic_ids.append(None)
        title = " ".join(_whole(item.title or "").split())
        titles[place] = titles[place] or (None if title in MISSING_TITLES else title)
        semantic_ids[place] = semantic_ids[place] or item.semantic_id
    if source.items is not None:
        _require_described(described, example, log, source.items, reading)
    return Prepared(
        user_sources=[user_names[code] for code in user_codes],
        item_sources=item_sources,
        items=items,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_codes)))]),
        times=kept.times,
        weights=kept.weights,
        titles=titles if any(titles) else None,
        semantic_ids=_complete(semantic_ids, item_sources),
        columns=None if columns is None else read_other_columns(source.items, columns, item_sources),
    )


def _require_described(described: set[str], example: str | None, log: Log, path: Path, reading: Reading) -> None:
    """DataError where the file of the items has none of the log's; where it has some, a note says how many."""
    if not described:
        theirs = "none" if example is None else f"others, such as {example!r}"
        raise DataError(
            f"{path}: expected items of the log, such as {next(iter(log.items))!r}, got {theirs}{reading.reasons()}\n"
            "(where a table has the items in another column: --items-item-column)"
        )
    if len(described) < len(log.items):
        reading.notes.append(f"{path.name} describes {len(described):,} of the {len(log.items):,} items of the log")


def _whole(title: str) -> str:
    """Halves of surrogate pairs, as of an emoji that was cut in two, are joined or replaced: no file can hold them."""
    return title if title.isascii() else title.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _complete(semantic_ids: list[tuple[int, ...] | None], item_sources: list[str]) -> list[tuple[int, ...]] | None:
    """The ids of all items, or None where no item has one."""
    known = [each for each in semantic_ids if each is not None]
    if not known:
        return None
    for name, found in zip(item_sources, semantic_ids, strict=True):
        if found is None or len(found) != len(known[0]):
            raise DataError(
                f"item {name}: expected a semantic id of {len(known[0])} levels, as other items have, got {found}"
            )
    return known


def _titles(prepared: Prepared) -> int:
    return 0 if prepared.titles is None else sum(title is not None for title in prepared.titles)


def _given(options: Options) -> dict[str, Any]:
    """The options that say something, as JSON has them."""
    found = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    found["columns"] = {name: value for name, value in found["columns"].items() if value is not None}
    return {name: value.name if isinstance(value, Path) else value for name, value in found.items()}
