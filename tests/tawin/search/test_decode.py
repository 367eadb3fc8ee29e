"""Steps that can change nothing may be left out or run: the result is the same. The search itself: test_rollout."""

from __future__ import annotations

import random

import pytest
import torch
from tawin_kernels import ItemTrie

import tawin.search.decode
from tawin.model.backbone import backbone
from tawin.model.tree_attention import prefill
from tawin.search.decode import BeamOptions, decode

from ..models import ragged_prompts, tiny_model


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("width", [1, 2, 5])
@torch.no_grad()
def test_stopping_early_changes_nothing(penalty: float, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    plain = tawin.search.decode.beam_step

    def counted(*arguments: object, **options: object) -> object:
        nonlocal steps
        steps += 1
        return plain(*arguments, **options)

    monkeypatch.setattr(tawin.search.decode, "beam_step", counted)
    left_out = 0
    for seed in range(6):
        draw = random.Random(seed)
        # Items of one to seven tokens: without a penalty the short ones win early.
        items = sorted({tuple(draw.randint(3, 9) for _ in range(draw.randint(1, 7))) for _ in range(40)})
        trie = ItemTrie.from_sequences([list(item) for item in items], end_token=2)
        parts = backbone(tiny_model("qwen2", seed=seed))
        prompt = ragged_prompts(1 + seed % 2, 5, seed=seed)
        options = BeamOptions(trie, width, length_penalty=penalty)
        steps = 0
        stopped = decode(parts, prefill(parts, *prompt), options, in_chains=False)
        left_out += trie.max_depth - steps
        steps = 0
        whole = decode(parts, prefill(parts, *prompt), options, stops_early=False, in_chains=False)
        assert steps == trie.max_depth
        assert torch.equal(stopped.nodes, whole.nodes)
        assert torch.equal(stopped.token_ids, whole.token_ids)
        assert torch.equal(stopped.scores, whole.scores)
    assert left_out > 0 or penalty == 2.0  # under so much of it long items stay in play


def test_options_are_equal_only_with_the_same_trie() -> None:
    tries = [ItemTrie.from_sequences([[3, 4], [5, 6]]) for _ in range(2)]
    assert BeamOptions(tries[0], 2) == BeamOptions(tries[0], 2) != BeamOptions(tries[1], 2)
    assert len({BeamOptions(tries[0], 2), BeamOptions(tries[0], 2), BeamOptions(tries[0], 3)}) == 2
