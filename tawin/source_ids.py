"""An item's id in the log that its data folder was prepared from, and its id in the folder: each from the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .columns import DataError, read_integers, read_table
from .data import ITEMS_FILE


@dataclass(frozen=True)
class SourceIds:
    """Both ways; distinct in the folders that `tawin prepare` writes."""

    item_ids: dict[str, int]
    source_ids: dict[int, str]

    def item_id(self, source_id: str) -> int:
        """ValueError where no item has that id."""
        if source_id not in self.item_ids:
            some = ", ".join(list(self.item_ids)[:3])
            raise ValueError(f"--history: expected ids of the log, like {some}, got {source_id!r}")
        return self.item_ids[source_id]


def read_source_ids(folder: Path) -> SourceIds:
    """The column `source_id` of a data folder's items. DataError where there is none."""
    path = folder / ITEMS_FILE
    table = read_table(path, required=("item_id", "source_id"))
    item_ids = read_integers(table, "item_id", path).tolist()
    sources = table["source_id"].to_pylist()
    if not all(isinstance(source, str) for source in sources):
        raise DataError(f"{path}: column 'source_id': expected a string for each item, as `tawin prepare` writes it")
    pairs = list(zip(sources, item_ids, strict=True))
    return SourceIds(dict(pairs), {item_id: source for source, item_id in pairs})
