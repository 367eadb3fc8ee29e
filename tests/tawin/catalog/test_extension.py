from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tawin.catalog.catalog import Catalog
from tawin.catalog.extension import Extension, extended_ids, match_items
from tawin.catalog.semantic_ids import residual_kmeans
from tawin.data.columns import DataError

from ..runs import make_run

NEAR = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0], [5.0, 1.0]])
IDS = [(0, 0), (0, 1), (1, 0), (1, 1, 0), (1, 1, 1)]


def extension(places: list[int], gone: int = 0) -> Extension:
    return Extension(np.array(places), gone)


def test_known_items_keep_their_ids_wherever_they_stand_and_new_ones_take_the_nearest_free_one() -> None:
    start = [(0, 0), (0, 1), (1, 0)]
    vectors = np.array([[5.0, 1.0], [5.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert extended_ids(start, extension([-1, 2, 1, 0]), vectors=vectors) == [(1, 1), (1, 0), (0, 1), (0, 0)]


def test_the_id_of_an_item_that_is_gone_stays_taken() -> None:
    start = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    vectors = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0], [5.1, 1.0]])
    ids = extended_ids(start, extension([0, 1, 2, 3, -1], gone=1), vectors=vectors)
    assert ids == [*start[:4], (1, 2)]


def test_where_no_id_is_free_an_item_stands_beside_the_nearest_and_is_told_apart_as_they_are() -> None:
    ids = extended_ids(
        IDS, extension([0, 1, 2, 3, 4, -1, -1, -1]), vectors=np.vstack([NEAR, [[5.0, 1.0]] * 2, [[0.0, 0.1]]])
    )
    assert ids == [*IDS, (1, 1, 2), (1, 1, 3), (0, 0)]


def test_new_items_take_the_datas_own_ids_and_are_told_apart() -> None:
    given = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (1, 1), (2, 2), (3, 0), (3, 0), (0, 0)]
    places = [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    ids = extended_ids(IDS, extension(places), given=given)
    assert ids == [*IDS, (1, 1, 2), (2, 2), (3, 0, 0), (3, 0, 1), (0, 0)]
    two = [*given[:3], (3, 0), (3, 0)]
    assert extended_ids(IDS[:3], extension([0, 1, 2, -1, -1]), given=two, separate=False)[3:] == two[3:]


def test_new_items_fall_to_those_they_are_like() -> None:
    """Of 200 items around 8 centres, those that come later share the first code with their own centre's items."""
    draw = np.random.default_rng(0)
    cluster = draw.integers(0, 8, size=200)
    vectors = draw.normal(size=(8, 6))[cluster] * 10 + draw.normal(size=(200, 6))
    start = [tuple(row) for row in residual_kmeans(vectors[:160], 3, 8, 0).tolist()]
    ids = extended_ids(start, extension([*range(160), *[-1] * 40]), vectors=vectors)
    assert ids[:160] == start and len(set(ids)) == 200
    own = {(cluster[row], ids[row][0]) for row in range(160)}
    assert np.mean([(cluster[row], ids[row][0]) in own for row in range(160, 200)]) > 0.9


def test_items_are_matched_by_the_logs_own_ids_and_another_shops_log_is_refused(tmp_path: Path) -> None:
    catalog = Catalog.load(make_run(tmp_path / "RUN").catalog)
    names = [catalog.names[3], "NEW", catalog.names[0]]
    found = match_items(catalog, names, "--data NEXT")
    assert found.places.tolist() == [3, -1, 0]
    assert found.counts() == {"known": 2, "new": 1, "gone": catalog.num_items - 2}
    with pytest.raises(DataError, match=r"--data NEXT: expected a later log .*, got 2 others, like NEW, A"):
        match_items(catalog, ["NEW", "A"], "--data NEXT")
