"""The columns of the items' table that are neither the item nor its title, in the order of the log's items."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ...data.columns import DataError, open_parquet
from ...data.item_columns import OWN_COLUMNS
from ..ids import plain_id
from ..source import Columns
from .column_names import bare_name, places_of_items
from .delimited import DELIMITERS
from .parquet_columns import ids

_GZIP = b"\x1f\x8b"


def read_other_columns(path: Path | None, columns: Columns, item_sources: list[str]) -> pa.Table | None:
    """A row an item, null where the table does not have it; of several rows of an item the first. None: no column.

    The types are those of the parquet file, or what all values of a csv's column look like: numbers, dates, text.
    path: None: there is no table. Nested columns are left out, and names that items.parquet has for its own.
    """
    if path is None:
        return None
    table = _parquet(path) if path.suffix == ".parquet" else _csv(path, columns)
    item, title = places_of_items(table.column_names, path, columns)
    named = table.column_names[item]
    kept: dict[str, int] = {}
    for place, field in enumerate(table.schema):
        name = bare_name(field.name)
        if place not in (item, title) and name and name not in OWN_COLUMNS and not pa.types.is_nested(field.type):
            kept.setdefault(name, place)
    if not kept:
        return None
    rows: dict[str, int] = {}
    for row, text in enumerate(ids(table.column(item).combine_chunks(), named, path)):
        try:
            rows.setdefault(plain_id("item", text), row)
        except ValueError:
            continue  # counted where items and titles are read
    order = pa.array([rows.get(source) for source in item_sources], pa.int64())
    return pa.table({name: table.column(place).take(order) for name, place in kept.items()})


def _parquet(path: Path) -> pa.Table:
    with open_parquet(path, ()) as file:
        return file.read(columns=file.schema_arrow.names)


def _csv(path: Path, columns: Columns) -> pa.Table:
    """Rows that are no rows are left out: they are counted where items and titles are read."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content.startswith(_GZIP) else content
    first = content.lstrip().partition(b"\n")[0].decode("utf-8", "replace").removeprefix("\ufeff")
    delimiter = columns.items_delimiter or max(DELIMITERS, key=first.count)
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    convert = pa.csv.ConvertOptions(strings_can_be_null=True)
    try:
        table = pa.csv.read_csv(io.BytesIO(content), parse_options=parse, convert_options=convert)
        header = [name.strip() for name in table.column_names]
        item, _ = places_of_items(header, path, columns)
        convert.column_types = {table.column_names[item]: pa.string()}  # 00071 is an id
        table = pa.csv.read_csv(io.BytesIO(content), parse_options=parse, convert_options=convert)
    except pa.ArrowException as error:
        raise DataError(f"{path}: expected a csv whose columns can be read, got one that cannot: {error}") from error
    return table.rename_columns(header)
