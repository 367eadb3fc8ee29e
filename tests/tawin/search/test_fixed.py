"""A decode on memory of its own finds what the growing cache finds, whatever was in that memory before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import tawin.search.decode
from tawin.model.backbone import Backbone, backbone
from tawin.model.tree_attention import prefill
from tawin.search.decode import BeamOptions, Sequences, decode
from tawin.search.fixed import FixedCache, FixedDecode

from ..models import FAMILIES, ragged_prompts, tiny_model

# fp32 through two layers of scaled-up weights; more hidden keys change the order of summation.
TOLERANCE = 2e-4
TRIE = ItemTrie.from_sequences(
    [[3, 4, 5], [3, 4, 6], [3, 7, 8], [9, 10, 11, 3], [9, 10, 11, 4], [9, 4], [13, 5, 6, 7], [13, 5, 8], [14, 15]]
)


def searched(parts: Backbone, prompts: tuple[Tensor, Tensor], options: BeamOptions) -> Sequences:
    return decode(parts, prefill(parts, *prompts), options)


def assert_same(found: Sequences, expected: Sequences) -> None:
    assert torch.equal(found.nodes, expected.nodes)
    assert torch.equal(found.token_ids, expected.token_ids)
    torch.testing.assert_close(found.scores, expected.scores, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["mask", "split"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@torch.no_grad()
def test_batch_after_batch_it_finds_what_a_search_with_a_growing_cache_finds(
    family: str, attention: str, penalty: float
) -> None:
    parts = backbone(tiny_model(family))
    options = BeamOptions(TRIE, 3, length_penalty=penalty, attention=attention)
    fixed = FixedDecode(8, options)
    for length in (6, 8, 3):  # shorter and longer than the one before
        prompts = ragged_prompts(4, length, seed=length)
        fixed.load(prefill(parts, *prompts))
        assert_same(fixed.run(parts), searched(parts, prompts, options))


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@torch.no_grad()
def test_a_beam_wider_than_the_catalogue_is_found_too(normalizer: str) -> None:
    parts = backbone(tiny_model("qwen2"))
    options = BeamOptions(TRIE, 12, normalizer=normalizer)
    prompts = ragged_prompts(2, 5)
    fixed = FixedDecode(5, options)
    fixed.load(prefill(parts, *prompts))
    assert_same(fixed.run(parts), searched(parts, prompts, options))


class ValuesAsked(TorchDispatchMode):
    """Notes every operation whose result the host has to wait for: a CUDA graph cannot hold one."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(op) for name in self.WAITING) and "not_equal" not in str(op):
            self.asked.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["mask", "split"])
@torch.no_grad()
def test_beam_step_aside_a_run_asks_the_device_for_no_value(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tawin.search.decode.beam_step

    def unseen(*arguments: Any, **options: Any) -> Any:
        with _disable_current_modes():  # on the CPU it is the reference, which does
            return plain(*arguments, **options)

    monkeypatch.setattr(tawin.search.decode, "beam_step", unseen)
    parts = backbone(tiny_model(family))
    fixed = FixedDecode(8, BeamOptions(TRIE, 3, attention=attention))
    fixed.load(prefill(parts, *ragged_prompts(4, 6)))
    with ValuesAsked() as values:
        fixed.run(parts)
    assert values.asked == []
    with ValuesAsked() as values:
        bool(torch.ones(1).any())
    assert values.asked


@torch.no_grad()
def test_a_second_run_of_the_same_batch_gives_the_same_bits() -> None:
    parts = backbone(tiny_model("qwen2"))
    fixed = FixedDecode(8, BeamOptions(TRIE, 3))
    fixed.load(prefill(parts, *ragged_prompts(4, 6)))
    first, second = fixed.run(parts), fixed.run(parts)
    assert torch.equal(first.nodes, second.nodes) and torch.equal(first.scores, second.scores)


@torch.no_grad()
def test_nan_that_an_earlier_batch_left_behind_is_not_seen() -> None:
    model = tiny_model("qwen2")
    parts, options = backbone(model), BeamOptions(TRIE, 3)
    fixed = FixedDecode(8, options)
    weight = model.model.layers[0].self_attn.v_proj.weight
    kept = weight.clone()
    weight.fill_(torch.nan)
    fixed.load(prefill(parts, *ragged_prompts(4, 8)))
    assert (fixed.run(parts).nodes == -1).all()
    weight.copy_(kept)
    prompts = ragged_prompts(4, 4)
    fixed.load(prefill(parts, *prompts))
    assert_same(fixed.run(parts), searched(parts, prompts, options))


@torch.no_grad()
def test_keys_and_values_stay_where_they_are() -> None:
    parts = backbone(tiny_model("qwen2"))
    fixed = FixedDecode(8, BeamOptions(TRIE, 3))
    places = []
    for length in (8, 5):
        fixed.load(prefill(parts, *ragged_prompts(4, length)))
        fixed.run(parts)
        cache = fixed._cache
        places.append([(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers])
    assert places[0] == places[1]
    assert cache.layers[0].keys.shape[2] == 8 + 3 * 3  # three steps of three beams are run


def test_a_fixed_cache_counts_the_keys_that_it_shows() -> None:
    cache = FixedCache(5)
    cache.place(1, 1)
    assert cache.get_seq_length() == 0
    keys, _ = cache.update(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), 0)
    assert keys.shape == (1, 2, 3, 4) and cache.get_seq_length() == 3
    cache.place(0, 4)
    keys, _ = cache.update(torch.full((1, 2, 1, 4), 2.0), torch.ones(1, 2, 1, 4), 0)
    assert keys[0, 0, :, 0].tolist() == [0.0, 1.0, 1.0, 1.0, 2.0]
