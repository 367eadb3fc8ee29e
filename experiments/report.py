"""The report of a table: a markdown file and its figures, each whole or not there at all.

`experiments.run` calls it when cells have ended. Theory's figures are drawn by `experiments.theory.figures`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from tawin.report.figures import LIGHT
from tawin.run.atomic import write_atomically

from . import figures, markdown
from .plan import Table
from .store import Record
from .theory import figures as theory_figures


def write_report(table: Table, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `<folder>/<table>.md` and `<folder>/<table>-*.png`.

    Args:
        table: what the records are of; records of another table are left alone.
        records: finished cells, as many as there are.
        folder: made where it is missing.

    Returns:
        The files that were written, the markdown first. A figure without a record to draw it from is none of them.

    Raises:
        ValueError: a figure that the table cannot have. No markdown is written then.
    """
    own = [record for record in records if record.table == table.name]
    names = figure_names(table)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [folder / name for name, entry in names.items() if _draw(table, own, entry, folder / name)]
    page = folder / f"{table.name}.md"
    about = f"{table.about}\n\n" if table.about else ""
    text = f"# {table.title}\n\n{about}{markdown.tables(table, own)}"
    for path in drawn:
        text += f"\n![{path.stem}]({path.name})\n\n{figures.caption(table, names[path.name])}\n"
    write_atomically(page, text)
    return [page, *drawn]


def figure_names(table: Table) -> dict[str, Mapping[str, Any]]:
    """File name -> entry of the table's figures; two of one name are refused, and theory's of no row."""
    names: dict[str, Mapping[str, Any]] = {}
    for entry in table.figures:
        if entry.get("kind") == "theory" and entry.get("name") not in {row.name for row in table.rows}:
            raise ValueError(
                f"figures: theory: name: expected a row of table {table.name!r}, got {entry.get('name')!r}"
            )
        subjects = {
            "sweep": str(entry.get("option")).rpartition(".")[2],
            "rows": entry.get("metric"),
            "series": entry.get("series"),
            "theory": entry.get("name"),
        }
        subject = re.sub(r"[^a-z0-9]+", "-", f"{entry.get('kind')} {subjects.get(str(entry.get('kind')))}".lower())
        name = f"{table.name}-{subject}.png"
        if name in names:
            raise ValueError(f"figures: expected distinct figures in table {table.name!r}, got {name} twice")
        names[name] = entry
    return names


def _draw(table: Table, records: Sequence[Record], entry: Mapping[str, Any], path: Path) -> bool:
    """Draw beside the place and rename; False where there is nothing to draw yet."""
    part = path.with_name(f".{path.stem}.writing.png")
    try:
        with matplotlib.rc_context(LIGHT.style()):
            if entry.get("kind") != "theory":
                figure = figures.draw(table, records, entry, LIGHT)
            elif any(record.row == entry["name"] for record in records):
                figure = theory_figures.draw(entry["name"], records, LIGHT)
            else:
                figure = None
            if figure is None:
                return False
            figure.savefig(part, metadata={"Software": None})  # the same bytes for the same records
        os.replace(part, path)
        return True
    finally:
        part.unlink(missing_ok=True)
