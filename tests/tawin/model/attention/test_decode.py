"""The split attention of a decode step gives what sdpa with the 4-D mask gives; where and when it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie
from torch import Tensor

import tawin.model.attention.decode
from tawin.model.attention.decode import (
    DecodeAttention,
    DecodeShape,
    SharedPrompt,
    attention_and_logsumexp,
    decode_attention,
    split_attention,
)
from tawin.model.backbone import backbone
from tawin.model.tree_attention import BeamTree, prefill
from tawin.search.decode import BeamOptions, Sequences, decode

from ...models import FAMILIES, ragged_prompts, tiny_model

# fp32 through two layers of scaled-up weights; the two parts of a softmax are added up in another order.
TOLERANCE = 2e-4
TRIE = ItemTrie.from_sequences([[3, 4, 5], [3, 4, 6], [3, 7, 8], [9, 10, 11], [9, 10, 12], [9, 4, 4], [13, 5, 6]])
# As in Qwen2.5-0.5B (14 query heads, 2 key heads of 64), 64 prompts of 256 tokens, 16 beams, bf16.
LARGE = DecodeShape(64, 16, heads=14, kv_heads=2, prompt_keys=256, suffix_keys=32, head_dim=64, itemsize=2)


def found_by(model: Any, prompts: tuple[Tensor, Tensor], attention: DecodeAttention) -> Sequences:
    parts = backbone(model)
    options = BeamOptions(TRIE, 4, attention=attention)
    with torch.no_grad():
        return decode(parts, prefill(parts, *prompts), options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [True, False])
def test_a_beam_search_with_split_attention_finds_the_same(
    family: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    input_ids, mask = ragged_prompts(3, 6)
    if not padded:
        input_ids, mask = input_ids.clamp_min(3), torch.ones_like(mask)
    split_layers = 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal split_layers
        split_layers += 1
        return split_attention(*arguments)

    monkeypatch.setattr(tawin.model.attention.decode, "split_attention", counted)
    expected, found = found_by(model, (input_ids, mask), "mask"), found_by(model, (input_ids, mask), "split")
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.scores, expected.scores, atol=TOLERANCE, rtol=0)
    # Two steps run two layers each; a window may hide prompt tokens, so layers that have one keep the mask.
    assert split_layers == {"mistral": 0, "gemma3": 2}.get(family, 4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_padded", [True, False])
def test_split_attention_equals_a_softmax_over_all_keys(kv_heads: int, is_padded: bool) -> None:
    batch, heads, width, prompt_keys, suffix_keys, head_dim = 3, 4, 5, 7, 10, 8
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query = normal(batch, heads, width, head_dim)
    key, value = (normal(batch, kv_heads, prompt_keys + suffix_keys, head_dim) for _ in range(2))
    mask = torch.rand(batch, 1, width, prompt_keys + suffix_keys, generator=draw) < 0.5
    mask[..., :prompt_keys] = torch.arange(prompt_keys) >= torch.tensor([0, 3, 6])[:, None, None, None] * is_padded
    mask[..., -width:] |= torch.eye(width, dtype=torch.bool)
    step = SharedPrompt(mask, prompt_keys, is_padded, "split")
    got = split_attention(query, key, value, step, 0.7)

    groups = heads // kv_heads
    scores = 0.7 * query @ key.repeat_interleave(groups, 1).mT
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(groups, 1)
    # The merge is in fp32: 6e-8 of values around 1.
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-6, rtol=1e-6)


def test_the_logsumexp_is_that_of_the_biased_scaled_scores() -> None:
    query, key, value = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 9, 9))
    bias = torch.zeros(2, 1, 1, 9)
    bias[1, ..., :4] = -torch.inf
    attended, logsumexp = attention_and_logsumexp(query, key, value, bias, 0.5)
    scores = 0.5 * query @ key.mT + bias
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1))
    torch.testing.assert_close(attended, scores.softmax(-1) @ value)


def test_on_the_cpu_nothing_is_split() -> None:
    assert decode_attention(torch.device("cpu"), LARGE) == "mask"


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ({}, "split"),
        ({"batch": 1}, "mask"),  # too little to read: launches decide
        ({"prompt_keys": 8, "suffix_keys": 8}, "mask"),
        ({"kv_heads": 14}, "mask"),  # nothing is expanded: the mask way reads the keys once, too
        ({"head_dim": 60}, "mask"),  # the kernel wants multiples of 8
    ],
)
def test_on_cuda_it_is_split_where_the_saved_bytes_pay_for_the_launches(
    change: dict[str, int], way: DecodeAttention
) -> None:
    assert decode_attention(torch.device("cuda"), dataclasses.replace(LARGE, **change)) == way


def test_dropout_in_attention_stays_with_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", attention_dropout=0.5).train()
    monkeypatch.setattr(tawin.model.attention.decode, "split_attention", None)  # a call would raise
    found_by(model, ragged_prompts(2, 4), "split")


def test_eager_attention_cannot_be_split() -> None:
    parts = backbone(tiny_model("qwen2", attention="eager"))
    with pytest.raises(ValueError, match=r"attention: 'split' needs .*sdpa"):
        BeamTree(parts, prefill(parts, *ragged_prompts(2, 4)), attention="split")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the memory-efficient kernel")
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_on_a_gpu_both_ways_find_the_same(family: str) -> None:
    model = tiny_model(family).cuda()
    input_ids, mask = (tensor.cuda() for tensor in ragged_prompts(3, 6))
    trie = TRIE.to("cuda")
    parts = backbone(model)
    found = []
    with torch.no_grad():
        for attention in ("mask", "split"):
            options = BeamOptions(trie, 4, attention=attention)
            found.append(decode(parts, prefill(parts, input_ids, mask), options))
    assert torch.equal(found[0].nodes, found[1].nodes)
    # fp32 products may be rounded to tf32 in one way and not in the other.
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=2e-2, rtol=0)
