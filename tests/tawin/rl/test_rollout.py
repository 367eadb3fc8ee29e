"""Rollouts: completions, scores and rewards of a batch of prompts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tawin.config import GRPOConfig, PolicyConfig
from tawin.model.packing import checkpoint_activations
from tawin.model.policy import add_lora
from tawin.rl.loss import completion_log_probs, group_loss
from tawin.rl.rollout import may_share_prompts, roll_out
from tawin.search.completions import score_sequences

from ..models import ragged_prompts, tiny_model
from ..small_groups import rolled_out, small_catalog


@pytest.mark.parametrize(("negatives", "completions"), [("beam", 6), ("random", 6), ("sample", 40)])
def test_a_group_is_no_larger_than_the_catalogue_has_sequences(negatives: str, completions: int) -> None:
    _, groups = rolled_out(
        GRPOConfig(group_size=40, negatives=negatives, ensure_positive=negatives == "random"), [0, 1, 3]
    )
    assert groups.token_ids.shape[:2] == groups.rewards.shape == (3, completions)
    assert (groups.rewards.sum(1) >= 1).all() and groups.valid.all()


# Sampling draws from the softmax over the trie; the config refuses it with another one.
WAYS = [("beam", "vocab"), ("beam", "trie"), ("sample", "trie"), ("random", "vocab"), ("random", "trie")]


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_the_reward_is_one_for_the_targets_sequence_and_no_other(negatives: str, normalizer: str) -> None:
    config = GRPOConfig(group_size=5, negatives=negatives, normalizer=normalizer, ensure_positive=negatives == "random")
    targets = [0, 1, 4, 2, 6, 3]
    _, groups = rolled_out(config, targets)
    catalog = small_catalog()
    for row, target in enumerate(targets):
        wanted = [t for t in catalog.token_ids[target].tolist() if t >= 0]
        for tokens, reward in zip(groups.token_ids[row].tolist(), groups.rewards[row].tolist(), strict=True):
            assert reward == float([t for t in tokens if t >= 0] == wanted)


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_every_completion_is_scored_by_its_summed_log_probs(negatives: str, normalizer: str) -> None:
    config = GRPOConfig(group_size=4, negatives=negatives, normalizer=normalizer, ensure_positive=True)
    model, groups = rolled_out(config, [0, 1, 2, 3])
    assert groups.normalizer == groups.take(torch.tensor([1])).normalizer == normalizer
    expected = score_sequences(
        model,
        groups.input_ids,
        groups.attention_mask,
        groups.token_ids,
        normalizer=normalizer,
        trie=small_catalog().trie if normalizer == "trie" else None,
    )
    torch.testing.assert_close(groups.scores, expected, atol=2e-4, rtol=0)  # fp32, another order of summation
    torch.testing.assert_close(completion_log_probs(model, groups).sum(-1), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_a_part_of_a_batch_gets_the_completions_that_it_has_in_the_whole(negatives: str, normalizer: str) -> None:
    config = GRPOConfig(group_size=3, negatives=negatives, normalizer=normalizer, ensure_positive=True)
    model, whole = rolled_out(config, [0, 1, 2, 3])
    part, draw = slice(1, 3), torch.Generator().manual_seed(0)
    own = (whole.input_ids[part], whole.attention_mask[part], torch.tensor([1, 2]))
    groups = roll_out(model, small_catalog(), *own, config, draw, part=part, whole=4)
    assert torch.equal(groups.token_ids, whole.token_ids[part])
    assert torch.equal(groups.rewards, whole.rewards[part])


def test_ensure_positive_replaces_the_last_completion_only_where_the_target_is_missing() -> None:
    plain = GRPOConfig(group_size=3)
    targets = list(range(7))
    _, without = rolled_out(plain, targets)
    _, having = rolled_out(dataclasses.replace(plain, ensure_positive=True), targets)
    assert not without.hits.all() and without.hits.any()
    assert torch.equal(without.hits, having.hits)
    assert (having.rewards.sum(1) == 1).all()
    assert torch.equal(having.token_ids[:, :-1], without.token_ids[:, :-1])
    assert torch.equal(having.token_ids[without.hits], without.token_ids[without.hits])
    assert (having.rewards[~without.hits, -1] == 1).all()


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_a_completion_that_is_any_of_several_targets_has_the_reward(negatives: str, normalizer: str) -> None:
    config = GRPOConfig(group_size=5, negatives=negatives, normalizer=normalizer, ensure_positive=negatives == "random")
    targets = [[0, 1, 4], [1, 4, 1], [4, 2, 6], [2, 3, 5], [6, 6, 6], [3, 0, 2]]  # 1 and 4 share a sequence
    _, groups = rolled_out(config, targets)
    items = [[token for token in tokens if token >= 0] for tokens in small_catalog().token_ids.tolist()]
    for row, several in enumerate(targets):
        wanted = [items[target] for target in several]
        found = [[token for token in tokens if token >= 0] in wanted for tokens in groups.token_ids[row].tolist()]
        assert groups.rewards[row].tolist() == [float(is_wanted) for is_wanted in found]
    assert int(groups.rewards.sum(1).max()) >= 2


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_one_target_may_stand_in_a_row_of_its_own_or_be_repeated(negatives: str, normalizer: str) -> None:
    config = GRPOConfig(group_size=3, negatives=negatives, normalizer=normalizer, ensure_positive=True)
    targets = torch.arange(7)
    _, expected = rolled_out(config, targets.tolist())
    for several in (targets[:, None], targets[:, None].expand(-1, 3)):
        _, groups = rolled_out(config, several.tolist())
        for name in ("token_ids", "rewards", "scores", "hits"):
            assert torch.equal(getattr(groups, name), getattr(expected, name))


def test_of_several_targets_the_first_missing_one_is_put_in_unless_the_last_completion_is_one() -> None:
    plain, ensured = GRPOConfig(group_size=3), GRPOConfig(group_size=3, ensure_positive=True)
    _, found = rolled_out(plain, [0])
    catalog = small_catalog()
    tokens = [[token if token >= 0 else -100 for token in item] for item in catalog.token_ids.tolist()]
    inside = [tokens.index(completion) for completion in found.token_ids[0].tolist()]  # the items of the group
    outside = [item for item in range(7) if tokens[item] not in found.token_ids[0].tolist()]
    for targets, last in (
        ([inside[0], outside[0], outside[1]], outside[0]),
        ([outside[1], inside[0], outside[0]], outside[1]),
        ([inside[1], inside[0], inside[1]], inside[2]),
        ([outside[0], inside[2], outside[1]], inside[2]),
    ):
        _, groups = rolled_out(ensured, [targets])
        assert groups.token_ids[0].tolist() == [tokens[inside[0]], tokens[inside[1]], tokens[last]]
        assert groups.hits.tolist() == [any(target in inside for target in targets)]


def test_a_group_wider_than_the_catalogue_has_invalid_completions() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=9), [0, 1])
    assert (groups.valid.sum(1) == 6).all()  # six distinct sequences
    assert groups.live.all()


@pytest.mark.parametrize(("negatives", "normalizer"), WAYS)
def test_going_on_from_the_rollouts_prompts_gives_the_same_groups_and_gradients(
    negatives: str, normalizer: str
) -> None:
    config = GRPOConfig(group_size=4, negatives=negatives, normalizer=normalizer, ensure_positive=True, beta=0.1)
    model, separate = rolled_out(config, [0, 1, 2, 3])
    reference = completion_log_probs(tiny_model("qwen2", seed=9), separate)
    input_ids, mask, targets = separate.input_ids, separate.attention_mask, torch.tensor([0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    run: list[int] = []
    count = model.model.layers[0].mlp.register_forward_hook(lambda _mlp, inputs, _out: run.append(inputs[0].shape[1]))
    shared = roll_out(model.train(), small_catalog(), input_ids, mask, targets, config, generator, shares_prompts=True)
    assert torch.equal(shared.token_ids, separate.token_ids) and torch.equal(shared.rewards, separate.rewards)
    torch.testing.assert_close(shared.scores, separate.scores, atol=2e-4, rtol=0)  # fp32, another order of summation
    expected, got = (group_loss(model, lambda _: reference, groups, config, 7.0) for groups in (separate, shared))
    count.remove()
    assert run[-1] == run[-2] - int(mask.sum())  # the shared one ran no prompt again
    torch.testing.assert_close(got.loss, expected.loss)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(got.loss, parameters), torch.autograd.grad(expected.loss, parameters), strict=True)
    for ours, theirs in pairs:  # fp32 sums in another order
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-3)


def test_prompts_are_shared_only_where_all_groups_are_trained_by_the_function_that_was_rolled_out() -> None:
    model, all_groups = tiny_model("qwen2"), GRPOConfig(beta=0.1)
    assert may_share_prompts(model, all_groups)
    assert not may_share_prompts(model, GRPOConfig())
    assert not may_share_prompts(model, dataclasses.replace(all_groups, gradient_accumulation=2))
    assert not may_share_prompts(tiny_model("qwen2", attention_dropout=0.1), all_groups)
    lora = add_lora(tiny_model("qwen2"), PolicyConfig(lora_rank=2), [])
    assert may_share_prompts(lora, all_groups)
    checkpoint_activations(model)
    assert not may_share_prompts(model, all_groups)


def test_the_model_is_back_in_training_mode_after_a_rollout() -> None:
    model = tiny_model("qwen2").train()
    input_ids, mask = ragged_prompts(2, 3)
    roll_out(model, small_catalog(), input_ids, mask, torch.tensor([0, 1]), GRPOConfig(group_size=2), torch.Generator())
    assert model.training
