"""The reader's walk in docs/ARCHITECTURE.md leads to where it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_stop_of_the_walk_is_at_its_lines() -> None:
    spec = importlib.util.spec_from_file_location("build_walk", ROOT / "docs" / "build_walk.py")
    assert spec is not None and spec.loader is not None
    walk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walk)
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert walk.stops(text) == 19
    assert text == walk.built(text), "run: python docs/build_walk.py"


def test_every_folder_of_the_package_is_in_the_table() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / "tawin").glob("*/__init__.py")]
    assert [name for name in folders if f"`tawin/{name}`" not in text and f"`{name}`" not in text] == ["integrations"]
