"""Text files as streams of lines, and the account of what could not be read in them.

A file is plain or gzip (told by its first bytes, not by its name), and is read a block at a time: what is held is one
block, however large the file. A line that is no text, or that a format calls malformed, is counted and its number
kept. This module knows nothing of what the lines say.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ...data.columns import DataError
from ..ids import MissingError

BLOCK_BYTES = 2**20
MAX_LINE_BYTES = 2**24
EXAMPLES = 10  # malformed lines that are named
HOPELESS_LINES = 1000  # where the first so many lines of a file are all malformed, it is not of that format
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"PAR1": "a parquet file; see `tawin prepare parquet --help`",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


@dataclass
class FileCount:
    """What was read of one file; `unit` is what is counted: lines, or the rows of a parquet file."""

    path: Path
    lines: int = 0
    malformed: int = 0
    unit: str = "line"
    missing: Counter[str] = field(default_factory=Counter)
    """Rows without a user and without an item, which are not malformed."""

    def as_dict(self, source: Path) -> dict[str, str | int]:
        """With the file's place in the source where that is a folder."""
        name = self.path.relative_to(source) if self.path.is_relative_to(source) else self.path
        file = str(name) if name.parts and name != self.path else self.path.name
        missing = {f"without_{name}": count for name, count in sorted(self.missing.items())}
        return {"file": file, f"{self.unit}s": self.lines, "malformed": self.malformed, **missing}


class Reading:
    """Reads the files of one source and keeps the account.

    max_malformed: the share of a file's lines that may be malformed.
    """

    def __init__(self, *, max_malformed: float, progress: bool) -> None:
        self._max_malformed = max_malformed
        self._progress = progress
        self.files: list[FileCount] = []
        self.examples: list[str] = []
        """The first malformed lines, as they are to be shown."""
        self.notes: list[str] = []
        """What else is to be said of the source."""

    def start(self, path: Path, unit: str = "line") -> FileCount:
        """Opens the account of a file, which `finish` closes."""
        count = FileCount(path, unit=unit)
        self.files.append(count)
        return count

    def look(self) -> Reading:
        """For a look at the same files before they are read: its account is nobody's."""
        return Reading(max_malformed=1.0, progress=False)

    def leave_out(self, count: FileCount, number: int, error: ValueError, lines: int = 1) -> None:
        """The row at line `number` is no interaction or no item, for this reason: one has no id, or it is malformed."""
        if isinstance(error, MissingError):
            count.missing[error.name] += 1
        else:
            self.report(count, number, str(error), lines)

    def report(self, count: FileCount, number: int, reason: str, lines: int = 1) -> None:
        """Line `number` (the first of `lines` of them) is malformed.

        DataError where no line of the file so far was any good.
        """
        count.malformed += lines
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{count.path}, {count.unit} {number}: {reason}")
        if count.malformed >= HOPELESS_LINES and count.malformed >= count.lines:
            self._refuse(count)

    def finish(self, count: FileCount) -> None:
        """DataError where more than the allowed share of the file's lines is malformed."""
        if count.malformed > self._max_malformed * count.lines:
            self._refuse(count)

    def _refuse(self, count: FileCount) -> None:
        raise DataError(
            f"{count.path}: expected at most {self._max_malformed:.1%} malformed {count.unit}s (--max-malformed), got "
            f"{count.malformed:,} of {count.lines:,}{self.reasons()}"
        )

    def reasons(self) -> str:
        """The first malformed lines, as they end a message; nothing where there are none."""
        return "; the first:\n" + "\n".join(f"  {each}" for each in self.examples) if self.examples else ""

    def lines(self, path: Path, *, latin_1: bool = False) -> Iterator[tuple[FileCount, int, str]]:
        """The file's account, a line's number from 1 and its text without the line break; blank lines are left out.

        latin_1: a line that is not UTF-8 is read as Latin-1, which every line is; else it is malformed.
        Raises DataError for a file that cannot be read, or is not text.
        """
        count = self.start(path)
        is_first = True
        for block in self._blocks(path):
            try:
                texts: list[str | None] = list(block.decode().split("\n"))
            except UnicodeDecodeError:
                texts = [_decode(line, latin_1) for line in block.split(b"\n")]
            for text in texts:
                count.lines += 1
                if text is None:
                    self.report(count, count.lines, "expected UTF-8, got bytes that are none")
                    continue
                if is_first:
                    text, is_first = text.removeprefix("\ufeff"), False
                if text and not text.isspace():
                    yield count, count.lines, text
        self.finish(count)

    def bar(self, path: Path) -> tqdm:
        """A progress bar over the bytes of a file, on a terminal."""
        disable = None if self._progress else True
        return tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=disable)

    def _blocks(self, path: Path) -> Iterator[bytes]:
        """Whole lines, about BLOCK_BYTES of them at a time, without the last line break."""
        with open(path, "rb") as file, self.bar(path) as bar:
            stream, rest = _open_text(file, path), b""
            while block := _read(stream, path):
                bar.update(file.tell() - bar.n)
                whole, found, rest_of_block = block.rpartition(b"\n")
                if found:
                    yield rest + whole
                    rest = rest_of_block
                else:
                    rest += rest_of_block
                if len(rest) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}: expected lines of at most {MAX_LINE_BYTES:,} bytes, got a longer one; "
                        "a JSON file has to be one object a line, not one array"
                    )
            if rest:
                yield rest


def _decode(line: bytes, latin_1: bool) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1") if latin_1 else None


def _open_text(file: io.BufferedReader, path: Path) -> BinaryIO:
    head = file.peek(8)[:8]
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path}: expected text, plain or gzip, got {name}")
    return gzip.GzipFile(fileobj=file) if head.startswith(_GZIP) else file  # type: ignore[return-value]


def _read(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.read(BLOCK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, got one that is cut off or damaged ({error}); fetch it again"
        ) from error
