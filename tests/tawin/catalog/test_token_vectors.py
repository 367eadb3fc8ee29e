"""Tokens begin at the vectors of their items, at the scale of the model's own embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tawin.catalog.catalog import Catalog, build_catalog, make_tokenizer
from tawin.catalog.token_vectors import begin_at_vectors, place_among_known
from tawin.config import CatalogConfig, PolicyConfig
from tawin.data.dataset import Dataset, Items
from tawin.model.policy import build_model

from ..models import tiny_model

NUM_ITEMS = 60
IDS = [(item // 6, item % 6) for item in range(NUM_ITEMS)]
DATASET = Dataset("made", np.array([0]), [np.arange(NUM_ITEMS)], Items(np.arange(NUM_ITEMS) + 100, semantic_ids=IDS))
SMALL = PolicyConfig(hidden_size=16, layers=1, heads=2, intermediate_size=24)


def catalog_of(item_tokens: str) -> tuple[Catalog, torch.nn.Module]:
    config = CatalogConfig(item_tokens=item_tokens)  # type: ignore[arg-type]
    tokenizer = make_tokenizer(DATASET, config, IDS)
    catalog = build_catalog(DATASET, tokenizer, config, training_sequences=[], semantic_ids=IDS)
    return catalog, build_model(SMALL, tokenizer, seed=0)


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T


def random_vectors(dimensions: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM_ITEMS, dimensions)).astype(np.float32)


@pytest.mark.parametrize("dimensions", [4, 16])
def test_items_are_as_alike_as_their_vectors_at_the_scale_of_the_weights(dimensions: int) -> None:
    catalog, model = catalog_of("item")
    vectors = random_vectors(dimensions)
    begin_at_vectors(model, catalog, vectors)
    weight = model.get_input_embeddings().weight.detach()
    assert weight is not None and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rows = weight[catalog.token_ids[:, 0]]
    torch.testing.assert_close(cosines(rows), cosines(torch.from_numpy(vectors)), atol=1e-4, rtol=0)
    assert float(rows.std()) == pytest.approx(0.02, rel=0.1)


def test_vectors_of_more_dimensions_keep_those_that_matter() -> None:
    catalog, model = catalog_of("item")
    vectors = random_vectors(8) @ random_vectors(40)[:8]  # of rank 8, within 16 dimensions without loss
    begin_at_vectors(model, catalog, vectors)
    rows = model.get_input_embeddings().weight.detach()[catalog.token_ids[:, 0]]
    torch.testing.assert_close(cosines(rows), cosines(torch.from_numpy(vectors)), atol=1e-4, rtol=0)


def test_a_code_begins_at_the_mean_of_its_items() -> None:
    catalog, model = catalog_of("semantic_id")
    vectors = np.repeat(random_vectors(16)[:10], 6, axis=0)  # the same for all items of a first code
    begin_at_vectors(model, catalog, vectors)
    rows = model.get_input_embeddings().weight.detach()
    first = rows[catalog.token_ids[::6, 0]]
    torch.testing.assert_close(cosines(first), cosines(torch.from_numpy(vectors[::6])), atol=1e-4, rtol=0)
    second = rows[catalog.token_ids[:6, 1]]
    assert (cosines(second) > 0.9999).all()  # each of them is at the mean of all


@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_models_new_rows_have_the_mean_and_spread_of_its_own(tied: bool) -> None:
    catalog, _ = catalog_of("item")
    model = tiny_model("qwen2", 3 + NUM_ITEMS + 40, tie_word_embeddings=tied)
    known = 43
    catalog.token_ids.add_(known - 3)
    with torch.no_grad():
        model.get_output_embeddings().weight[:known] += 3.0
    before = [part.weight.detach().clone() for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    begin_at_vectors(model, catalog, random_vectors(8), known=known)
    for part, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        new = part.weight.detach()
        assert torch.equal(new[:known], old[:known])
        rows, own = new[known:], old[:known]
        torch.testing.assert_close(rows.mean(0), own.mean(0), atol=float(own.std(0).max()) / 2, rtol=0)
        assert float((rows - own.mean(0)).std()) == pytest.approx(float((own - own.mean(0)).std()), rel=0.1)


def test_a_token_that_the_model_knows_stays_as_it_is() -> None:
    catalog, model = catalog_of("item")
    before = model.get_input_embeddings().weight.detach().clone()
    begin_at_vectors(model, catalog, random_vectors(4), known=10)
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[:10], before[:10]) and not (after[10:] == before[10:]).all(1).any()


@pytest.mark.parametrize("tied", [True, False])
def test_new_items_stand_where_their_vectors_are_among_the_known_ones(tied: bool) -> None:
    """Rows are a rotation of the vectors: a new item's row is found by it, one without a first source by the second."""
    catalog, _ = catalog_of("item")
    model = tiny_model("qwen2", 3 + NUM_ITEMS, tie_word_embeddings=tied)
    size = model.get_input_embeddings().weight.shape[1]
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    turned = vectors @ np.random.default_rng(1).normal(size=(6, size)).astype(np.float32)
    wanted = np.arange(NUM_ITEMS) >= NUM_ITEMS - 8
    with torch.no_grad():
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.weight[catalog.token_ids[:, 0]] = torch.from_numpy(np.where(wanted[:, None], 9.0, turned))
    first = np.where(np.arange(NUM_ITEMS)[:, None] == NUM_ITEMS - 1, 0.0, vectors).astype(np.float32)
    place_among_known(model, catalog, [first, vectors], wanted=wanted, known=~wanted)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = part.weight.detach()[catalog.token_ids[:, 0]].numpy()
        assert np.array_equal(rows[~wanted], turned[~wanted])
        distance = np.linalg.norm(rows[wanted] - turned[wanted], axis=1) / np.linalg.norm(turned[wanted], axis=1)
        assert distance.max() < 0.35  # as far from the mean as the known ones, not as their own vectors are


def test_an_item_without_any_vector_stands_in_the_middle_of_the_known_ones() -> None:
    catalog, model = catalog_of("item")
    wanted = np.arange(NUM_ITEMS) == 2
    vectors = np.where(wanted[:, None], 0.0, random_vectors(4)).astype(np.float32)
    place_among_known(model, catalog, [vectors], wanted=wanted, known=~wanted)
    rows = model.get_input_embeddings().weight.detach()[catalog.token_ids[:, 0]]
    torch.testing.assert_close(rows[2], rows[torch.from_numpy(~wanted)].mean(0))
