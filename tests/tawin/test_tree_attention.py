"""Prompts: refused where they do not fit, run once, and gone on from."""

from __future__ import annotations

import pytest
import torch

from tawin.backbone import backbone
from tawin.tree_attention import BeamTree, check_prompts, prefill

from .models import ragged_prompts, tiny_model


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        check_prompts(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 0, 1], [0, 0, 0]]))


def test_a_model_that_keeps_no_cache_is_refused_with_what_to_do() -> None:
    model = tiny_model("qwen2").train()
    model.gradient_checkpointing_enable()
    input_ids, mask = ragged_prompts(2, 4)
    with pytest.raises(ValueError, match=r"keeps no cache.*model\.eval\(\)"):
        prefill(backbone(model), input_ids, mask)


def test_a_detached_prompt_is_appended_to_on_its_own_and_carries_no_gradient() -> None:
    model = tiny_model("qwen2")
    prompt = prefill(backbone(model), *ragged_prompts(2, 4))
    keys = prompt.cache.layers[0].keys
    detached = prompt.detached()
    assert keys.requires_grad and not detached.cache.layers[0].keys.requires_grad
    assert not detached.last_hidden.requires_grad
    tokens = torch.full((2, 1), 5)
    BeamTree(backbone(model), detached).append(tokens, torch.zeros_like(tokens))
    assert detached.cache.get_seq_length() == 5 and prompt.cache.get_seq_length() == 4
    assert prompt.cache.layers[0].keys is keys
