"""Columns of a parquet file, a batch at a time, as Python values: ids as text, points in time as milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...data.columns import DataError, ParquetReader, reading_parquet
from .lines import Reading

BATCH_ROWS = 2**16
_ID_TYPES = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_MANTISSA = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}  # bits; larger whole numbers have lost digits


def read_batches(
    reading: Reading, file: ParquetReader, path: Path, columns: list[str | None]
) -> Iterator[dict[str, pa.Array]]:
    """The columns that are not None."""
    names = list(dict.fromkeys(name for name in columns if name is not None))
    size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
    with reading.bar(path) as bar:
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            yield dict(zip(batch.schema.names, batch.columns, strict=True))
            bar.update(size * batch.num_rows // rows)


def ids(values: pa.Array, name: str, path: Path) -> list[str]:
    """As text, "" for null. DataError for a column that holds no ids."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_floating(kind):
        values = _whole(values.cast(kind), name, path)
    elif not any(test(kind) for test in _ID_TYPES):
        raise DataError(f"{path}: column '{name}': expected ids, strings or integers, got {values.type}")
    with reading_parquet(path):  # bytes that are no text
        return [(text or "").strip() for text in pc.cast(values, pa.string()).to_pylist()]


def _whole(values: pa.Array, name: str, path: Path) -> pa.Array:
    """Whole numbers that stand in floats because some are missing, as pandas does it; NaN is null."""
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    present = ~np.isnan(numbers)
    limit = 2.0 ** _MANTISSA[values.type]
    bad = numbers[present & ~((np.floor(numbers) == numbers) & (np.abs(numbers) < limit))]
    if len(bad):
        raise DataError(
            f"{path}: column '{name}': expected ids, strings or integers, got {values.type} such as {bad[0]!r}: save "
            "them as strings or integers"
        )
    return pa.array(np.where(present, numbers, 0).astype(np.int64), mask=~present)


def is_time(field: pa.Field, path: Path) -> bool:
    """Whether the column has points in time or dates. DataError for a time of day or a duration."""
    if pa.types.is_temporal(field.type) and not (pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)):
        raise DataError(f"{path}: column '{field.name}': expected points in time, got {field.type}")
    return pa.types.is_temporal(field.type)


def times(values: pa.Array, path: Path) -> list[Any]:
    """Points in time and dates as milliseconds since 1970, anything else as it is."""
    with reading_parquet(path):  # points in time that no millisecond holds, or bytes that are no text
        if pa.types.is_temporal(values.type):
            # A finer unit is cut off; a coarser one may not fit, which arrow refuses.
            is_finer = pa.types.is_timestamp(values.type) and values.type.unit in ("us", "ns")
            tz = values.type.tz if pa.types.is_timestamp(values.type) else None
            values = values.cast(pa.timestamp("ms", tz=tz), safe=not is_finer).cast(pa.int64())
        return values.to_pylist()
