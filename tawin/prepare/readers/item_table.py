"""Tables of (item, title), csv or parquet, whatever the columns are called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...data.columns import open_parquet, reading_parquet
from ..ids import plain_id
from ..source import Columns, Item
from .column_names import places_of_items
from .delimited import read_rows
from .lines import Reading
from .parquet_columns import ids, read_batches


def read_item_table(reading: Reading, path: Path, columns: Columns) -> Iterator[Item]:
    """Items and titles, of a csv with a header or of a parquet file."""
    yield from (_parquet if path.suffix == ".parquet" else _csv)(reading, path, columns)


def _csv(reading: Reading, path: Path, columns: Columns) -> Iterator[Item]:
    item = title = -1
    width = 0
    for count, number, lines, row in read_rows(reading, path, columns.items_delimiter):
        if not width:
            item, title = places_of_items(row, path, columns)
            width = len(row)
            continue
        try:
            if len(row) != width:
                raise ValueError(f"expected {width} fields and an item, got {len(row)} fields")
            yield Item(plain_id("item", row[item].strip()), row[title])
        except ValueError as error:
            reading.leave_out(count, number, error, lines)


def _parquet(reading: Reading, path: Path, columns: Columns) -> Iterator[Item]:
    count = reading.start(path, "row")
    with open_parquet(path, ()) as file:
        header = file.schema_arrow.names
        item, title = (header[place] for place in places_of_items(header, path, columns))
        for batch in read_batches(reading, file, path, [item, title]):
            with reading_parquet(path):
                texts = batch[title].to_pylist()
            for source_id, text in zip(ids(batch[item], item, path), texts, strict=True):
                count.lines += 1
                try:
                    yield Item(plain_id("item", source_id), None if text is None or text != text else str(text))
                except ValueError as error:
                    reading.leave_out(count, count.lines, error)
    reading.finish(count)
