"""Prompts: refused where they do not fit, run once, and gone on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie
from torch.overrides import TorchFunctionMode

from tawin.model.backbone import backbone
from tawin.model.tree_attention import BeamTree, check_prompts, prefill, prompt_batch
from tawin.search.completions import beam_search

from ..models import ragged_prompts, tiny_model


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 0], "last column all 1"),
        ([1, 0, 1], "a hole"),
        ([0, 2, 1], "zeros and ones"),
        ([1, 1, 0], "last column"),
    ],
)
def test_a_prompt_that_is_empty_or_not_left_padded_is_refused(row: list[int], message: str) -> None:
    model = tiny_model("qwen2")
    mask = torch.tensor([[0, 0, 1], row])
    with pytest.raises(ValueError, match=f"attention_mask: .*{message}"):
        beam_search(model, torch.zeros(2, 3, dtype=torch.int64), mask, ItemTrie.from_sequences([[3, 4]]), 1)


def test_prompts_without_a_column_are_refused() -> None:
    with pytest.raises(ValueError, match="input_ids: expected prompts of at least one token"):
        check_prompts(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64))


class HostReads(TorchFunctionMode):
    """Counts what reads a tensor's values on the host, which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = ("__bool__", "item", "tolist", "__int__", "__index__", "__float__", "nonzero", "cpu", "numpy")
        self.count += func.__name__ in reads
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_what_the_host_must_know_of_prompts_is_read_once(dtype: torch.dtype) -> None:
    parts = backbone(tiny_model("qwen2"))
    input_ids, mask = ragged_prompts(4, 6)
    with HostReads() as reads:
        check_prompts(input_ids, mask.to(dtype))
        prompts = prompt_batch(parts, input_ids, mask.to(dtype), cached=True)
    assert reads.count == 1
    assert prompts.is_padded and torch.equal(prompts.lengths, mask.sum(1))


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
