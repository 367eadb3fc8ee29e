"""Models come from a config or through from_pretrained; what cannot be trained right is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tawin.catalog.tokenizer import load_tokenizer, make_semantic_tokenizer
from tawin.config import PolicyConfig
from tawin.model.backbone import backbone
from tawin.model.policy import FAMILIES as BUILT
from tawin.model.policy import add_lora, build_model, load_model, merged

from ..models import FAMILIES, tiny_model

SMALL = PolicyConfig(hidden_size=16, layers=1, heads=2, intermediate_size=24)


def test_a_small_model_has_one_embedding_a_token_and_depends_on_the_seed_alone() -> None:
    tokenizer = make_semantic_tokenizer(["<a_0>", "<a_1>"])
    torch.manual_seed(5)
    first = build_model(SMALL, tokenizer, seed=1)
    torch.manual_seed(6)
    again, other = build_model(SMALL, tokenizer, seed=1), build_model(SMALL, tokenizer, seed=2)
    weight = first.get_input_embeddings().weight
    assert weight.shape == (len(tokenizer), 16)
    assert weight is first.get_output_embeddings().weight
    assert torch.equal(weight, again.get_input_embeddings().weight)
    assert not torch.equal(weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize("family", BUILT)
def test_every_family_is_built_as_asked_and_comes_back_from_its_folder(family: str, tmp_path: Path) -> None:
    tokenizer = make_semantic_tokenizer(["<a_0>", "<a_1>"])
    config = dataclasses.replace(SMALL, family=family, layers=2, attention_dropout=0.25)
    model = build_model(config, tokenizer, seed=1).eval()
    assert model.config.model_type == {"gemma3": "gemma3_text"}.get(family, family)
    assert (model.config.num_hidden_layers, model.config.attention_dropout) == (2, 0.25)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    input_ids = torch.tensor([[1, 3, 4, 2]])
    assert torch.equal(load_model(tmp_path).eval()(input_ids=input_ids).logits, model(input_ids=input_ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_and_grows_to_the_tokenizer(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    grown = load_model(tmp_path, tokens=50)
    old = model.get_input_embeddings().weight
    assert grown.get_input_embeddings().weight.shape[0] == 50
    assert torch.equal(grown.get_input_embeddings().weight[:40], old)
    assert grown.get_output_embeddings().weight.shape[0] == 50
    # An embedding that is already larger (padded for speed) stays as it is.
    assert load_model(tmp_path, tokens=30).get_input_embeddings().weight.shape[0] == 40


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_padding_that_new_tokens_take_are_drawn_as_added_rows_are(tied: bool, tmp_path: Path) -> None:
    model = tiny_model("qwen2", tie_word_embeddings=tied)  # 40 rows, of which the tokenizer knows 30, say
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, tokens=44, known=30)
    for old, new in (
        (model.get_input_embeddings().weight, loaded.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, loaded.get_output_embeddings().weight),
    ):
        assert torch.equal(new[:30], old[:30])
        torch.testing.assert_close(new[30:40], old[:30].mean(0).expand(10, -1), rtol=0, atol=1e-3)
        assert len(new[30:40].unique(dim=0)) == 10
        # Those that were added are transformers': of the mean of all 40.
        torch.testing.assert_close(new[40:], old.mean(0).expand(4, -1), rtol=0, atol=1e-3)
    # Rows that no token takes stay, and so does everything where no token is new.
    few = load_model(tmp_path, tokens=33, known=30).get_input_embeddings().weight
    assert torch.equal(few[33:], model.get_input_embeddings().weight[33:])
    none = load_model(tmp_path, tokens=33, known=33).get_input_embeddings().weight
    assert torch.equal(none, model.get_input_embeddings().weight)


def test_a_tokenizer_loads_from_a_folder(tmp_path: Path) -> None:
    make_semantic_tokenizer(["<a_0>"]).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).convert_tokens_to_ids("<a_0>") == 3


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_the_new_tokens_alone_in_an_untied_head_too(tied: bool) -> None:
    model = add_lora(tiny_model("qwen2", tie_word_embeddings=tied), PolicyConfig(lora_rank=2), [5, 6])
    parts = backbone(model)
    hidden = parts.decoder(input_ids=torch.tensor([[5, 7, 6]])).last_hidden_state
    (hidden @ parts.weight.T).square().sum().backward()
    deltas = {name: p.grad for name, p in model.named_parameters() if "trainable_tokens_delta" in name}
    assert len(deltas) == (1 if tied else 2)
    assert all(grad is not None and bool((grad != 0).any(1).all()) for grad in deltas.values())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or "trainable_tokens" in name for name in trained)
    assert merged(model) is not model
    plain = tiny_model("qwen2")
    assert merged(plain) is plain
