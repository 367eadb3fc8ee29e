"""Small source files for the tests, and what a data folder made of them holds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.fuzz_prepare import by_source, columns_of
from tawin.prepare import Options, prepare


def write(path: Path, *lines: str | bytes, end: bytes = b"\n") -> Path:
    """The lines as a file, gzip where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((line.encode() if isinstance(line, str) else line) + end for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_objects(path: Path, *records: dict[str, Any]) -> Path:
    return write(path, *(json.dumps(record) for record in records))


def made(format_name: str, source: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """What `prepare` reports, for a data set too small for a 5-core."""
    return prepare(format_name, source, folder, Options(**{"min_interactions": 0, **options}))


def sequences(folder: Path) -> dict[str, list[str]]:
    """The source's own user ids with their own item ids, oldest first."""
    return by_source(*columns_of(folder))


def titles(folder: Path) -> dict[str, str | None]:
    items = pq.read_table(folder / "items.parquet").to_pydict()
    return dict(zip(items["source_id"], items["title"], strict=True))


def times(folder: Path) -> list[list[int]]:
    return pq.read_table(folder / "interactions.parquet")["times"].to_pylist()
