"""A search for some items: against the exact scores of all, cut to these."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tawin.evaluate.exact import score_catalog
from tawin.evaluate.pool import pool_of
from tawin.evaluate.ranking import recommend
from tawin.serve.load import Serving, load_serving

from ..runs import make_run


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    return load_serving(make_run(tmp_path_factory.mktemp("pool") / "run").path)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("excludes", ["no", "yes"])
def test_only_these_items_are_found_with_the_scores_they_have_among_all(
    serving: Serving, normalizer: str, excludes: str
) -> None:
    model, catalog = serving.model, serving.catalog
    config = dataclasses.replace(
        serving.options.evaluation, normalizer=normalizer, exclude_history=excludes, beam_width=40
    )
    histories = [np.array([3, 7, 11]), np.array([20])]
    among = np.array([1, 3, 7, 8, 15, 22, 23, 39])
    found = recommend(model, catalog, histories, config, among=among)
    with torch.no_grad():
        scores = score_catalog(model, *catalog.encode_histories(histories), catalog, normalizer=normalizer).numpy()
    for row, history in enumerate(histories):
        kept = np.setdiff1d(among, history) if excludes == "yes" else among
        best = kept[np.argsort(-scores[row, kept], kind="stable")]
        present = found.items[row] >= 0
        assert found.items[row][present].tolist() == best.tolist()
        np.testing.assert_allclose(found.scores[row][present], scores[row, best], atol=1e-4)  # sums in another order


@pytest.mark.parametrize("among", [[], [-1, 3], [3, 40], [5, 3], [3, 3]])
def test_rows_that_are_not_the_catalogues_are_refused(serving: Serving, among: list[int]) -> None:
    with pytest.raises(ValueError, match=r"among: expected distinct items in \[0, 40\)"):
        pool_of(serving.catalog, np.array(among, dtype=np.int64), "vocab")


def test_the_trie_of_some_items_is_theirs_alone(serving: Serving) -> None:
    pool = pool_of(serving.catalog, np.array([4, 9]), "vocab")
    assert pool.trie.num_items == 2
    assert pool.items(torch.tensor([[1, 0, -1]])).tolist() == [[9, 4, -1]]


def test_a_run_folder_carries_its_items_columns(tmp_path: Path, serving: Serving) -> None:
    import pyarrow as pa

    from tawin.catalog.catalog import Catalog

    columns = pa.table({"price": np.arange(40) * 1.5, "kind": ["a", "b"] * 20})
    dataclasses.replace(serving.catalog, columns=columns).save(tmp_path / "catalog")
    assert Catalog.load(tmp_path / "catalog").columns.equals(columns)
