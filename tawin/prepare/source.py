"""What a format is: a way to open a source, which then gives its interactions and describes its items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from ..data.columns import DataError
from .clean import Duplicates
from .dates import read_date
from .log import Log
from .readers.lines import Reading
from .times import Unit, require_format


@dataclass(frozen=True)
class Columns:
    """Columns of a table by name, or, where it has no header, by number from 1; None: known by a usual name."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    event: str | None = None
    title: str | None = None
    """Of the table of items, as are the next two."""
    items_item: str | None = None
    items_delimiter: str | None = None
    """None: the one of , ; | and tab that the table's first line has most of."""
    has_header: bool = True
    has_times: bool = True
    """False: the rows stand oldest first."""
    delimiter: str | None = None
    """None: the one of , ; | and tab that the first line has most of."""
    time_unit: Unit = "auto"
    time_format: str | None = None
    """Of `datetime.strptime`; None: the times say by their look what they are."""

    def __post_init__(self) -> None:
        for option, delimiter in (("--delimiter", self.delimiter), ("--items-delimiter", self.items_delimiter)):
            if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
                raise ValueError(
                    f"{option}: expected one character, no quotation mark, got {delimiter!r}; "
                    "a tab is $'\\t' in a shell"
                )
        if self.time_format is not None:
            if self.time_unit != "auto":
                raise ValueError("--time-unit: expected it without --time-format, which says what times are by itself")
            require_format(self.time_format)
        if self.time_unit not in get_args(Unit):
            raise ValueError(f"--time-unit: expected one of {', '.join(get_args(Unit))}, got {self.time_unit!r}")


@dataclass(frozen=True)
class Options:
    """What `tawin prepare` was asked to do. None: as is usual for the format."""

    items: Path | None = None
    """The file that describes the items, where it is not found beside the interactions."""
    category: str | None = None
    """Which of several data sets in one folder: a part of the names of its files."""
    min_interactions: int | None = None
    duplicates: Duplicates | None = None
    min_rating: float | None = None
    keep: tuple[str, ...] | None = None
    """The kinds of event that are kept, by `columns.event`; None: all are."""
    weights: dict[str, float] | None = None
    """In its place: the kinds that are kept, and how much an interaction of each counts in training."""
    after: str | None = None
    before: str | None = None
    keep_unseen_items: bool | None = None
    """Whether items that are described, but in no interaction that is kept, are in the catalogue."""
    max_malformed: float = 0.01
    columns: Columns = Columns()

    def __post_init__(self) -> None:
        if self.min_interactions is not None and self.min_interactions < 0:
            raise ValueError(f"--min-interactions: expected 0 or more, got {self.min_interactions}")
        if not 0.0 <= self.max_malformed <= 1.0:
            raise ValueError(f"--max-malformed: expected a share in [0, 1], got {self.max_malformed}")
        if self.duplicates not in (None, *get_args(Duplicates)):
            expected = ", ".join(get_args(Duplicates))
            raise ValueError(f"--duplicates: expected one of {expected}, got {self.duplicates!r}")
        if self.min_rating is not None and math.isnan(self.min_rating):
            raise ValueError(f"--min-rating: expected a number, got {self.min_rating}")
        kinds = {"--keep": self.keep, "--weights": self.weights}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) == 2:
            raise ValueError("--weights: expected it without --keep: the events that it names are kept")
        if given and self.columns.event is None:
            raise ValueError(f"{given[0]}: expected it with --event-column, got {given[0]} alone")
        if self.columns.event is not None and not given:
            raise ValueError("--event-column: expected it with --keep or --weights, got --event-column alone")
        for name, weight in (self.weights or {}).items():
            if not (name and 0 < weight < math.inf):
                raise ValueError(
                    f"--weights: expected names of events and numbers above 0, as in view=.2,purchase=1, got "
                    f"{name}={weight:g}; events that it does not name are left out"
                )
        if self.keep is not None and not all(self.keep):
            raise ValueError(f"--keep: expected names of events, as in view,purchase, got {','.join(self.keep)!r}")
        for name, text in (("--after", self.after), ("--before", self.before)):
            date_option(name, text)
            if text is not None and not self.columns.has_times:
                raise ValueError(f"{name}: expected a source with times, got --no-times")


def date_option(name: str, text: str | None) -> int | None:
    """Milliseconds since 1970. ValueError that names the option."""
    try:
        return None if text is None else read_date(text)
    except ValueError:
        raise ValueError(f"{name}: expected a date like 2018-07-07, got {text!r}") from None


@dataclass(frozen=True)
class Item:
    """What a source says of one of its items."""

    source_id: str
    title: str | None = None
    semantic_id: tuple[int, ...] | None = None


class Source(Protocol):
    """The files of one data set, found but not read yet."""

    @property
    def items(self) -> Path | None:
        """The file that describes the items, if there is one."""

    def read_log(self, reading: Reading, log: Log) -> None:
        """Adds every interaction to the log; malformed lines go to `reading`."""

    def read_items(self, reading: Reading) -> Iterator[Item]:
        """The items that the source describes, in any order, some perhaps twice; none where it describes none."""


@dataclass(frozen=True)
class Format:
    """A format that `tawin prepare` reads."""

    name: str
    summary: str
    open: Callable[[Path, Options], Source]
    """DataError where the files are not there."""
    min_interactions: int = 5
    duplicates: Duplicates = "drop"
    has_categories: bool = False
    has_columns: bool = False
    """Whether the options of `Columns` are of use."""
    has_item_table: bool = False
    """Whether those of them that are of the table of items are, where not all are."""
    keeps_unseen_items: bool = False
    """Whether items that are described but nobody has are in the catalogue."""


def one_file(
    folder: Path, patterns: tuple[str, ...], what: str, *, category: str | None = None, but: str | None = None
) -> Path | None:
    """The one file of a folder that fits a pattern, plain or with .gz; of the first pattern that any fits.

    but: files whose names begin so are none. None where there is no file; DataError where there are several.
    """
    for pattern in patterns:
        found = sorted({*folder.glob(pattern), *folder.glob(f"{pattern}.gz")})
        found = [path for path in found if path.is_file() and (category is None or category in path.name)]
        found = [path for path in found if but is None or not path.name.startswith(but)]
        if len(found) > 1:
            raise DataError(
                f"{folder}: expected one file of {what}, found {', '.join(path.name for path in found)}; "
                "name the file itself as the source, or part of its name with --category"
            )
        if found:
            return found[0]
    return None


def log_and_items(
    source: Path,
    options: Options,
    log: tuple[str, tuple[str, ...]],
    items: tuple[str, tuple[str, ...]],
    *,
    but: str | None = None,
) -> tuple[Path, Path | None]:
    """The file of the interactions, SOURCE itself or the one in it, and the one that describes the items, if any.

    log, items: what the file holds, and the patterns of its name. but: as for `one_file`, of the log.
    """
    (what, patterns), (what_of_items, patterns_of_items) = log, items
    described = options.items
    if source.is_dir():
        found = one_file(source, patterns, what, category=options.category, but=but)
        if found is None:
            raise DataError(f"{source}: expected {what} ({' or '.join(patterns)}, plain or .gz), found none")
        described = described or one_file(source, patterns_of_items, what_of_items, category=options.category)
    else:
        found = require_file(source, f"{what}, or a folder with them")
    if described is not None:
        require_file(described, what_of_items)
    return found, described


def require_file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: expected {what}, found no such file")
    return path
