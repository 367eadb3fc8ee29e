"""MiniOneRec and ReRe, https://github.com/AkaliKong/MiniOneRec, https://github.com/sober-clever/ReRe: csv of windows.

A row is a user's history, the last ten items, and the item that followed. Every interaction but a user's first is the
target of one row, and train, valid and test part the rows by time, so that the rows of a user, joined one after
another, give the whole sequence back. An info file says `semantic id <tab> title <tab> item` a line (ReRe: `title
<tab> item`). ReRe's rows have times and ratings too.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.columns import DataError
from ..ids import plain_id
from ..log import Log, read_rating
from ..readers.column_names import find_column
from ..readers.delimited import read_rows
from ..readers.lines import FileCount, Reading
from ..source import Format, Item, Options, one_file, require_file
from ..times import TimeReader

PARTS = ("train", "valid", "test")
KEPT = 256  # of a user's last items, to which the next window is joined; histories have ten
MAX_CODE = 2**31 - 1  # items.parquet has int32
_SEMANTIC_ID = re.compile(r"(?:<[a-z]_\d+>)+")
_CODE = re.compile(r"_(\d+)>")


@dataclass(frozen=True)
class Window:
    """A user's history and the item that followed, as one list."""

    user: str
    items: list[str]
    times: list[int | None]
    ratings: list[Any]


@dataclass
class Joined:
    """The ends of users' sequences so far."""

    ends: dict[str, list[str]] = field(default_factory=dict)
    gaps: int = 0
    """Windows that do not follow on what was there of their user."""

    def add(self, user: str, items: list[str]) -> int:
        """Puts a window behind what is there of the user: how many of its items, the last ones, are new."""
        end = self.ends.setdefault(user, [])
        new = _new(end, items)
        if new == len(items) and end:
            self.gaps += 1
        end.extend(items[len(items) - new :])
        del end[:-KEPT]
        return new


def _new(end: list[str], items: list[str]) -> int:
    """How many of the window's items come after `end`, whose last items are the window's first ones."""
    history = items[:-1]
    if len(history) <= len(end) and end[len(end) - len(history) :] == history:
        return 1
    for shared in range(min(len(end), len(items)), 0, -1):
        if end[-shared:] == items[:shared]:
            return len(items) - shared
    return len(items)


@dataclass(frozen=True)
class Windows:
    """The files of one data set."""

    files: tuple[Path, ...]
    items: Path | None
    missing: tuple[str, ...]
    """Parts of the release that are not there."""

    def read_log(self, reading: Reading, log: Log) -> None:
        times, joined = TimeReader("s"), Joined()
        log.time_reader = times
        for path in self.files:
            for count, number, lines, row in _rows(reading, path):
                try:
                    window = _window(row, times, log.wants_rating)
                except ValueError as error:
                    reading.leave_out(count, number, error, lines)
                    continue
                first = len(window.items) - joined.add(window.user, window.items)
                for place in range(first, len(window.items)):
                    log.add(window.user, window.items[place], window.times[place], window.ratings[place])
        if self.missing:
            reading.notes.append(
                f"no {' and no '.join(self.missing)} file: what users did before the histories of the others is missing"
            )
        if joined.gaps:
            reading.notes.append(
                f"{joined.gaps:,} windows do not follow on their user's windows before: interactions are missing there"
            )

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is None:
            for path in self.files:
                yield from _items_of_windows(reading, path)
            return
        for count, number, text in reading.lines(self.items):
            try:
                yield _described(text.rstrip("\r").split("\t"))
            except ValueError as error:
                reading.leave_out(count, number, error)


def _rows(reading: Reading, path: Path) -> Iterator[tuple[FileCount, int, int, dict[str, str]]]:
    header: list[str] | None = None
    for count, number, lines, row in read_rows(reading, path, ","):
        if header is None:
            header = [name.strip() for name in row]
            for name in ("user_id", "history_item_id", "item_id"):
                find_column(header, name, (), "windows", path)
        elif len(row) != len(header):
            reading.report(count, number, f"expected {len(header)} fields, got {len(row)}", lines)
        else:
            yield count, number, lines, dict(zip(header, row, strict=True))


def _window(row: dict[str, str], times: TimeReader, wants_rating: bool) -> Window:
    user, items = plain_id("user", row["user_id"].strip()), _items(row)
    found: dict[str, list[Any]] = {}
    for name, wanted in (("timestamp", "timestamp" in row), ("rating", wants_rating)):
        found[name] = [*_list(row, f"history_{name}"), row.get(name)] if wanted else [None] * len(items)
        if len(found[name]) != len(items):
            raise ValueError(f"expected a {name} for each item, got {len(found[name])} for {len(items)}")
    if "timestamp" in row:
        found["timestamp"] = [times.read(value) for value in found["timestamp"]]
    if wants_rating:
        found["rating"] = [read_rating(value) for value in found["rating"]]
    return Window(user, items, found["timestamp"], found["rating"])


def _items(row: dict[str, str]) -> list[str]:
    """The history and the target."""
    history = _list(row, "history_item_id")
    if not all(type(item) is int or item.is_integer() for item in history):
        raise ValueError(f"expected whole numbers as history_item_id, got {row['history_item_id'][:80]!r}")
    return [plain_id("item", text) for text in (*(str(int(item)) for item in history), row["item_id"].strip())]


def _list(row: dict[str, str], name: str) -> list[Any]:
    try:
        found = json.loads(row[name])
    except (KeyError, ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(type(value) in (int, float) for value in found):
        raise ValueError(f"expected a list of numbers as {name}, got {row.get(name, 'none')[:80]!r}")
    return found


def _described(fields: list[str]) -> Item:
    """A line of an info file; a title may hold tabs."""
    *before, item = fields
    semantic_id = _semantic_id(before.pop(0)) if len(before) > 1 and before[0].startswith("<") else None
    if not before:
        raise ValueError(f"expected semantic id, title, item or title, item, got {len(fields)} fields")
    return Item(plain_id("item", item.strip()), "\t".join(before), semantic_id)


def _semantic_id(text: str) -> tuple[int, ...]:
    if not _SEMANTIC_ID.fullmatch(text.strip()):
        raise ValueError(f"expected a semantic id like <a_12><b_3><c_4>, got {text[:80]!r}")
    codes = tuple(int(code) for code in _CODE.findall(text))
    if max(codes) > MAX_CODE:
        raise ValueError(f"expected codes of at most {MAX_CODE}, got {text[:80]!r}")
    return codes


def _items_of_windows(reading: Reading, path: Path) -> Iterator[Item]:
    """Titles and semantic ids as the windows themselves repeat them, each item once; none where they have neither."""
    seen: set[str] = set()
    for count, number, lines, row in _rows(reading, path):
        if "item_title" not in row and "item_sid" not in row:
            continue
        try:
            items = _items(row)
            if seen.issuperset(items):
                continue
            titles = (
                [*_texts(row, "history_item_title"), row["item_title"]] if "item_title" in row else [""] * len(items)
            )
            ids = [*_texts(row, "history_item_sid"), row["item_sid"]] if "item_sid" in row else []
            if len(titles) != len(items) or len(ids) not in (0, len(items)):
                raise ValueError(f"expected a title and an id of each of {len(items)} items, got others")
            for place, item in enumerate(items):
                yield Item(item, titles[place] or None, _semantic_id(ids[place]) if ids else None)
            seen.update(items)
        except ValueError as error:
            reading.leave_out(count, number, error, lines)


def _texts(row: dict[str, str], name: str) -> Sequence[str]:
    """A list of strings as Python prints it; literal_eval knows literals only, nothing is run."""
    try:
        found = ast.literal_eval(row.get(name, ""))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise ValueError(f"expected a list of texts as {name}")
    return found


def _open(source: Path, options: Options) -> Windows:
    info = options.items
    if source.is_file():
        files: dict[str, Path] = {"": source}
        missing: tuple[str, ...] = ()
    else:
        if not source.is_dir():
            raise DataError(
                f"{source}: expected a folder with train, valid, test and info, or one csv file, found neither"
            )
        found = {part: _part(source / part, "*.csv", options.category) for part in PARTS}
        files = {part: path for part, path in found.items() if path is not None}
        missing = tuple(part for part in PARTS if part not in files)
        if not files:
            raise DataError(f"{source}: expected csv files in the folders train, valid and test, found none")
        info = info or _part(source / "info", "*.txt", options.category)
    if info is not None:
        require_file(info, "an info file")
    return Windows(tuple(files.values()), info, missing)


def _part(folder: Path, pattern: str, category: str | None) -> Path | None:
    return one_file(folder, (pattern,), "windows", category=category) if folder.is_dir() else None


MINIONEREC = Format(
    "minionerec",
    "the MiniOneRec release: folders train, valid, test and info",
    _open,
    min_interactions=0,
    duplicates="keep",
    has_categories=True,
    keeps_unseen_items=True,
)
RERE = Format(
    "rere",
    "the ReRe release: folders train, valid, test and info",
    _open,
    min_interactions=0,
    duplicates="keep",
    has_categories=True,
    keeps_unseen_items=True,
)
