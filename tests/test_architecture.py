"""The reader's walk in docs/ARCHITECTURE.md leads to where it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCREEN = 40  # lines


def test_the_lines_of_every_stop_lead_to_its_function() -> None:
    # An edit above a function moves it by some lines: the page may lag behind by a screen.
    spec = importlib.util.spec_from_file_location("build_walk", ROOT / "docs" / "build_walk.py")
    assert spec is not None and spec.loader is not None
    walk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walk)
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    stops = walk.stops(text)
    assert len(stops) == 19
    for path, function, first, last in stops:
        start, end = walk.lines_of(path, function)
        assert first <= end + SCREEN and start <= last + SCREEN, (
            f"{path}: {function} is at {start}-{end}; run: python docs/build_walk.py"
        )


def test_every_folder_of_the_package_is_in_the_table() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / "tawin").glob("*/__init__.py")]
    assert [name for name in folders if f"`tawin/{name}`" not in text and f"`{name}`" not in text] == ["integrations"]
