"""Finished cells as parquet: one file a cell while a table is being run, one file a table to keep and to commit.

Knows what a record holds and nothing of how it came about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tawin.run.atomic import write_atomically

PARTS = ("valid", "test")
SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("data", pa.string()),
        ("row", pa.string()),
        ("seed", pa.int32()),
        ("settings", pa.string()),  # JSON
        ("values", pa.map_(pa.string(), pa.float64())),
        *((f"{part}_ranks", pa.list_(pa.int32())) for part in PARTS),
        ("series", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("seconds", pa.float64()),
        ("machine", pa.string()),
        ("version", pa.string()),
        ("finished_at", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Record:
    """A finished cell: one row of a table, on one data set, with one seed."""

    table: str
    data: str
    row: str
    seed: int
    settings: dict[str, Any]
    """The cell's whole options as run, fit for JSON."""
    values: dict[str, float]
    """Figures by name: "valid recall@3", "test ndcg@10", ..., or those of a theory cell."""
    ranks: dict[str, np.ndarray] = field(default_factory=dict)
    """Of "valid" and "test": int32 [users], the target's zero-based rank, -1 = not found. The same users in the same
    order for all rows and seeds of a data set."""
    series: dict[str, list[float]] = field(default_factory=dict)
    """What figures are drawn from."""
    seconds: float = 0.0
    machine: str = ""
    version: str = ""
    finished_at: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells cells apart."""
        return self.table, self.data, self.row, self.seed


def write_records(records: Sequence[Record], path: Path) -> None:
    """All records in one parquet file, which appears whole or not at all; cells that stand there twice are refused."""
    keys = [record.key for record in records]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"records: expected each cell once, got several of {sorted(repeated)[0]}")
    table = pa.Table.from_pylist([_to_row(record) for record in records], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = pa.BufferOutputStream()
    pq.write_table(table, written, compression="zstd")
    write_atomically(path, written.getvalue().to_pybytes())


def read_records(path: Path) -> list[Record]:
    """The records of a parquet file, or of all *.parquet files of a folder, by table, data, row and seed.

    Raises:
        ValueError: a file that holds no records; the file is named.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    records = [record for file in files for record in _read(file)]
    return sorted(records, key=lambda record: record.key)


def _read(file: Path) -> list[Record]:
    try:
        rows = pq.read_table(file).cast(SCHEMA).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{file}: expected records of experiments, got a file that cannot be read so: {error}"
        ) from None
    return [_from_row(row) for row in rows]


def _to_row(record: Record) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in SCHEMA.names if hasattr(record, name)}
    row["settings"] = json.dumps(record.settings)
    row["values"], row["series"] = list(record.values.items()), list(record.series.items())
    for part in PARTS:
        row[f"{part}_ranks"] = record.ranks[part].tolist() if part in record.ranks else None
    return row


def _from_row(row: dict[str, Any]) -> Record:
    ranks = {part: row.pop(f"{part}_ranks") for part in PARTS}
    return Record(
        **{
            **row,
            "settings": json.loads(row["settings"]),
            "values": dict(row["values"]),
            "series": dict(row["series"]),
            "ranks": {part: np.array(found, dtype=np.int32) for part, found in ranks.items() if found is not None},
        }
    )
