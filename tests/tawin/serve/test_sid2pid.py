"""`tawin export` writes sid2pid.json where the ids are OpenOneRec's, and says why where they are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tawin import cli
from tawin.catalog.catalog import Catalog
from tawin.config import CatalogConfig, Config
from tawin.serve.sid2pid import misfit, write_sid2pid

from ..runs import SMALL, make_run

THREE_CODES = dataclasses.replace(SMALL, catalog=CatalogConfig(levels=3, codes=3, separate_shared_ids=False))
ONE_TOKEN = dataclasses.replace(SMALL, catalog=CatalogConfig(item_tokens="item"))


def exported(folder: Path, config: Config) -> Path:
    make_run(folder / "run", config)
    cli.main(["export", str(folder / "run"), str(folder / "served")])
    return folder / "served"


def unpacked(key: str) -> tuple[int, int, int]:
    """A key as the readers of this file take it apart: by division, not by its making."""
    number = int(key)
    return number // 8192**2, number % 8192**2 // 8192, number % 8192


def test_every_item_stands_once_under_its_own_codes(tmp_path: Path) -> None:
    folder = exported(tmp_path, THREE_CODES)
    found = json.loads((folder / "sid2pid.json").read_text())
    catalog = Catalog.load(folder)
    assert catalog.semantic_ids is not None and catalog.source_ids is not None
    pairs = [(unpacked(key), one["pid"]) for key, items in found.items() for one in items]
    expected = zip(catalog.semantic_ids, map(int, catalog.source_ids), strict=True)
    assert sorted(pairs) == sorted(expected)
    assert len(found) < len(pairs)  # 40 items on at most 27 ids


def test_ids_that_are_no_plain_numbers_stay_text(tmp_path: Path) -> None:
    catalog = Catalog.load(exported(tmp_path, THREE_CODES))
    assert catalog.source_ids is not None
    names = ["007", *catalog.source_ids[1:]]
    write_sid2pid(dataclasses.replace(catalog, source_ids=names), tmp_path)
    found = json.loads((tmp_path / "sid2pid.json").read_text())
    assert {one["pid"] for items in found.values() for one in items} == set(names)


@pytest.mark.parametrize(
    ("config", "reason"),
    [(SMALL, "its ids have 3 codes, those of this catalogue 2 or 3"), (ONE_TOKEN, "the items have no semantic ids")],
    ids=["two lengths", "one token an item"],
)
def test_other_catalogues_have_none_and_are_told_why(
    config: Config, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path, config)
    assert not (folder / "sid2pid.json").exists()
    assert f"without sid2pid.json: {reason}" in capsys.readouterr().out


def test_codes_beyond_the_form_are_a_misfit(tmp_path: Path) -> None:
    catalog = Catalog.load(exported(tmp_path, THREE_CODES))
    assert misfit(catalog) is None
    assert catalog.semantic_ids is not None
    beyond = dataclasses.replace(catalog, semantic_ids=[(0, 0, 8192), *catalog.semantic_ids[1:]])
    assert misfit(beyond) == "its codes are below 8192, this catalogue has 8192"
