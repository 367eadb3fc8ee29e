"""Rewards: targets by identity, ranking rewards, and a reward of one's own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tawin.config import GRPOConfig, TAWinConfig
from tawin.rl.loss import group_loss
from tawin.rl.rewards import REWARDS, Candidates, ranking
from tawin.rl.rollout import roll_out

from ..models import ragged_prompts, tiny_model
from ..small_groups import rolled_out, small_catalog


def ranking_rewards_by_loop(is_target: list[bool], scores: list[float], valid: list[bool]) -> list[float]:
    """The rewards of one group, one completion after another, in fp64."""
    order = sorted((i for i in range(len(scores)) if valid[i]), key=lambda i: (-scores[i], i))
    if not any(is_target[i] for i in order):
        return [0.0] * len(scores)
    total = sum(1 / math.log2(place + 2) for place in range(len(order)))
    rewards = [0.0] * len(scores)
    for place, i in enumerate(order):
        rewards[i] = 1.0 if is_target[i] else -1 / math.log2(place + 2) / total
    return rewards


completion = st.tuples(st.booleans(), st.integers(-4, 0), st.booleans())  # is a target, score (with ties), exists


@given(groups=st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(completion, min_size=n, max_size=n), min_size=1)))
def test_ranking_rewards_are_those_of_a_loop(groups: list[list[tuple[bool, int, bool]]]) -> None:
    table = torch.tensor(groups)  # [B, G, 3]
    valid = table[..., 2].bool()
    is_target, scores = table[..., 0].bool() & valid, table[..., 1].float()
    items = torch.where(valid, 0, -1)
    found = ranking(Candidates(is_target, scores, items, None, small_catalog()))
    rows = zip(is_target.tolist(), scores.tolist(), valid.tolist(), strict=True)
    expected = torch.tensor([ranking_rewards_by_loop(*row) for row in rows])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)  # fp32 against fp64, values of at most 1
    assert (found[~is_target] <= 0).all() and (found[is_target] == 1).all()


@pytest.mark.parametrize("tawin", [True, False])
def test_with_ranking_rewards_the_place_in_the_beam_is_what_a_negative_pays_for(tawin: bool) -> None:
    config = GRPOConfig(group_size=4, reward="ranking", tawin=TAWinConfig(enabled=tawin))
    targets = [0, 1, 2, 3, 4, 5, 6]
    model, groups = rolled_out(config, targets)
    _, binary = rolled_out(dataclasses.replace(config, reward="binary"), targets)
    assert groups.live.tolist() == binary.live.tolist() == groups.hits.tolist() and not groups.hits.all()
    discounts = 1 / torch.log2(torch.arange(4) + 2.0)
    expected = torch.where(binary.rewards == 1, 1.0, -discounts / discounts.sum()) * groups.hits[:, None]
    torch.testing.assert_close(groups.rewards, expected)
    advantages = group_loss(model, None, groups, config, 7.0).advantages
    assert (advantages[binary.rewards == 1] > 0).all() and not advantages[~groups.hits].any()
    negatives = advantages[groups.hits[:, None] & (binary.rewards == 0)]
    assert (negatives < 0).all() if not tawin else (negatives <= 0).all()


def test_ranking_rewards_go_by_score_where_completions_are_not_in_its_order() -> None:
    config = GRPOConfig(group_size=5, negatives="random", ensure_positive=True, reward="ranking")
    _, groups = rolled_out(config, [0, 1, 2, 3])
    for rewards, scores, valid in zip(groups.rewards, groups.scores, groups.valid, strict=True):
        expected = ranking_rewards_by_loop((rewards == 1).tolist(), scores.tolist(), valid.tolist())
        assert rewards.tolist() == pytest.approx(expected, abs=1e-6) and min(expected) < 0
    assert any((scores.diff() > 0).any() for scores in groups.scores)  # the slots are in another order


def test_a_reward_of_ones_own_sees_items_histories_and_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str | None] = ["red", "blue", "red", None, "blue", "red", "blue"]
    histories = [np.array([0, 5]), np.array([1])]

    def same_colour(candidates: Candidates) -> torch.Tensor:
        """1 where the item is called as the last one of the history, 2 for a target."""
        assert candidates.histories is not None and candidates.catalog.titles is not None
        names = candidates.catalog.titles
        last = [names[history[-1]] for history in candidates.histories]
        items = candidates.items.tolist()
        same = [[float(i >= 0 and names[i] == name) for i in row] for row, name in zip(items, last, strict=True)]
        return torch.tensor(same).masked_fill(candidates.is_target, 2.0)

    monkeypatch.setitem(REWARDS, "colours", same_colour)
    catalog = dataclasses.replace(small_catalog(), titles=titles)
    input_ids, mask = ragged_prompts(2, 5)
    config, generator = GRPOConfig(group_size=8, reward="colours"), torch.Generator().manual_seed(0)
    targets = torch.tensor([0, 1])
    groups = roll_out(tiny_model("qwen2"), catalog, input_ids, mask, targets, config, generator, histories=histories)
    # All six sequences: red is 0, 2, 5; blue is 1 (whose sequence is 4's too), 6.
    assert sorted(groups.rewards[0].tolist()) == [0, 0, 0, 1, 1, 2]
    assert sorted(groups.rewards[1].tolist()) == [0, 0, 0, 0, 1, 2]


def test_a_reward_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"grpo.reward: expected one of 'binary', 'ranking', got 'dense'"):
        rolled_out(GRPOConfig(reward="dense"), [0])


@pytest.mark.parametrize("reward", ["binary", "ranking"])
def test_a_target_is_worth_what_its_interaction_weighs(reward: str) -> None:
    config = GRPOConfig(group_size=4, reward=reward, ensure_positive=True)
    model, input_ids, mask = tiny_model("qwen2"), *ragged_prompts(2, 5)
    targets, weights = torch.tensor([[0, 3], [1, 1]]), torch.tensor([[0.25, 2.0], [5.0, 5.0]])

    def rewards(weights: torch.Tensor | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        groups = roll_out(model, small_catalog(), input_ids, mask, targets, config, generator, weights=weights)
        return groups.rewards

    plain, weighed = rewards(None), rewards(weights)
    assert torch.equal(rewards(torch.ones(2, 2)), plain)
    is_target = plain == 1
    assert is_target.sum(1).min() >= 1 and torch.equal(weighed[~is_target], plain[~is_target])
    assert set(weighed[0][is_target[0]].tolist()) <= {0.25, 2.0} and set(weighed[1][is_target[1]].tolist()) == {5.0}
