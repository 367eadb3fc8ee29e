"""The report of a table: a markdown file and its figures, and the same between the marks of a document.

A document (docs/EXPERIMENTS.md) says where a table goes by two comments, each on it once:

    <!-- table main begin -->
    <!-- table main end -->

What stands between them is replaced, all else stays to the byte. Every file appears whole or not at all. Knows nothing
of how cells are run, and leaves theory's figures to `experiments.theory.figures`.
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


def write_report(table: Table, records: Sequence[Record], folder: Path, *, document: Path | None) -> list[Path]:
    """Write `<folder>/<table>.md` and `<folder>/<table>-*.png`, and fill in the document's marked part.

    Args:
        table: what the records are of; records of another table are left alone.
        records: finished cells, as many as there are.
        folder: made where it is missing.
        document: a markdown file that holds the table's two marks; None: no document.

    Returns:
        The files that were written, the markdown first. A figure without a record to draw it from is none of them.

    Raises:
        ValueError: a document without the marks, or with one of them missing, repeated, in the wrong order or around
            another table's; a figure that the table cannot have. No markdown is written then.
    """
    own = [record for record in records if record.table == table.name]
    before, after = ("", "") if document is None else split_document(document, table.name)
    names = figure_names(table)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [folder / name for name, entry in names.items() if _draw(table, own, entry, folder / name)]
    text = markdown.tables(table, own)
    page = folder / f"{table.name}.md"
    about = f"{table.about}\n\n" if table.about else ""
    images = _images(table, drawn, names, folder)
    write_atomically(page, f"# {table.title}\n\n{about}{text}{images}")
    if document is None:
        return [page, *drawn]
    images = _images(table, drawn, names, document.parent)
    before, after = split_document(document, table.name)  # again: figures take a while, and others write here too
    write_atomically(document, f"{before}\n\n{text}{images}\n{after}")
    return [page, *drawn, document]


def split_document(document: Path, name: str) -> tuple[str, str]:
    """A document's text up to and with the mark that begins a table, and from the mark that ends it on."""
    begin, end = (f"<!-- table {name} {side} -->" for side in ("begin", "end"))
    if not document.is_file():
        raise ValueError(f"document: expected a file with the lines {begin} and {end}, found no file {document}")
    text = document.read_bytes().decode("utf-8")  # not read_text, which would change the ends of lines
    for mark in (begin, end):
        if text.count(mark) != 1:
            raise ValueError(f"document: expected {mark} once in {document}, found it {text.count(mark)} times")
    start, stop = text.index(begin) + len(begin), text.index(end)
    if stop < start:
        raise ValueError(f"document: expected {begin} before {end} in {document}, found it after")
    if other := re.search(r"<!-- table \S+ (begin|end) -->", text[start:stop]):
        raise ValueError(f"document: expected no other table between {begin} and {end} in {document}, got {other[0]}")
    return text[:start], text[stop:]


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


def _images(table: Table, drawn: Sequence[Path], names: Mapping[str, Mapping[str, Any]], seen_from: Path) -> str:
    """Each figure with its caption, linked from a folder."""
    text = ""
    for path in drawn:
        link = Path(os.path.relpath(path, seen_from)).as_posix()
        text += f"\n![{path.stem}]({link})\n\n{figures.caption(table, names[path.name])}\n"
    return text
