"""Groups, rewards by identity, and that leaving dead groups out changes nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import ItemTrie, tawin_grpo_loss
from torch import nn

from tawin.catalog.catalog import Catalog
from tawin.config import GRPOConfig, PolicyConfig, TAWinConfig
from tawin.model.backbone import backbone
from tawin.model.packing import checkpoint_activations
from tawin.model.policy import add_lora
from tawin.rl.objective import (
    Groups,
    completion_log_probs,
    group_loss,
    loss_denominator,
    may_share_prompts,
    ranking_rewards,
    roll_out,
)
from tawin.search.completions import score_sequences

from ..models import completion_hidden, ragged_prompts, tiny_model


def small_catalog() -> Catalog:
    """Seven items of two or three tokens; items 1 and 4 share a sequence."""
    tokens = torch.tensor([[5, 6, -1], [7, 8, -1], [9, 10, 11], [9, 10, 12], [7, 8, -1], [13, 14, -1], [15, 5, -1]])
    trie = ItemTrie.from_sequences(tokens, lengths=(tokens >= 0).sum(1))
    return Catalog(np.arange(7), None, None, tokens, trie, trie.leaf_of_item, (1,), 0, None)


def rolled_out(config: GRPOConfig, targets: Any, *, seed: int = 0) -> tuple[nn.Module, Groups]:
    model = tiny_model("qwen2", seed=seed)
    input_ids, mask = ragged_prompts(len(targets), 5)
    generator = torch.Generator().manual_seed(0)
    return model, roll_out(model, small_catalog(), input_ids, mask, torch.tensor(targets), config, generator)


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
    found = ranking_rewards(is_target, scores, valid)
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


def window_weights_by_bisection(scores: list[float], anchor: float, window: float) -> list[float]:
    """w of METHOD for the negatives of a group, identity ranks and temperature 1."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    x = [-abs(order.index(i) - anchor) for i in range(len(scores))]
    low, high = -100.0, 100.0
    for _ in range(200):
        level = (low + high) / 2
        mass = sum(min(1.0, math.exp(min(0.0, value - level))) for value in x)
        low, high = (level, high) if mass > window else (low, level)
    masses = [min(1.0, math.exp(min(0.0, value - level))) for value in x]
    return [mass * len(x) / sum(masses) for mass in masses]


def test_two_positives_of_a_group_share_its_advantages_and_the_window_is_over_the_negatives() -> None:
    config = GRPOConfig(group_size=6, tawin=TAWinConfig(anchor=1.0, window=1.5))
    model, groups = rolled_out(config, [[0, 2], [1, 4], [6, 3]])
    assert groups.rewards.sum(1).tolist() == [2, 1, 2]  # all six sequences are in each group; 1 and 4 share one
    advantages = group_loss(model, None, groups, config, 18.0).advantages
    for rewards, scores, found in zip(groups.rewards, groups.scores, advantages, strict=True):
        plain = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        negatives = (rewards == 0).nonzero()[:, 0]
        expected = plain.clone()
        expected[negatives] *= torch.tensor(window_weights_by_bisection(scores[negatives].tolist(), 1.0, 1.5))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # fp32 against fp64


def test_a_group_wider_than_the_catalogue_has_invalid_completions() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=9), [0, 1])
    assert (groups.valid.sum(1) == 6).all()  # six distinct sequences
    assert groups.live.all()


def test_taking_groups_cuts_the_padding_that_no_prompt_needs() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=3), [0, 1, 2, 3])
    lengths = groups.attention_mask.sum(1)
    short = lengths.argmin()[None]
    taken = groups.take(short)
    assert taken.input_ids.shape == (1, int(lengths.min()))
    assert taken.attention_mask.all()
    assert torch.equal(taken.input_ids[0], groups.input_ids[short[0]][groups.attention_mask[short[0]].bool()])


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo"])
@pytest.mark.parametrize("tawin", [True, False])
def test_leaving_dead_groups_out_and_splitting_the_batch_are_exact(loss_type: str, tawin: bool) -> None:
    tawin_options = TAWinConfig(enabled=tawin)
    config = GRPOConfig(group_size=4, loss_type=loss_type, epsilon_high=1.5, tawin=tawin_options)
    model, groups = rolled_out(config, [0, 1, 2, 3, 4, 5, 6])
    assert groups.live.any() and not groups.live.all()
    denominator = loss_denominator([groups], loss_type)

    def gradient(parts: list[Groups]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for part in parts:
            loss = group_loss(model, None, part, config, denominator).loss
            loss.backward()
            total += float(loss.detach())
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole_loss, whole = gradient([groups])
    live = groups.live.nonzero()[:, 0]
    live_loss, skipped = gradient([groups.take(live)])
    split_loss, split = gradient([groups.take(live[:1]), groups.take(live[1:])])
    assert live_loss == pytest.approx(whole_loss, abs=1e-5)
    assert split_loss == pytest.approx(whole_loss, abs=1e-5)
    for name, expected in whole.items():
        scale = max(1.0, float(expected.abs().max()))  # fp32 sums in another order
        torch.testing.assert_close(skipped[name], expected, atol=1e-4 * scale, rtol=1e-3, msg=name)
        torch.testing.assert_close(split[name], expected, atol=1e-4 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_gradient_is_that_of_hidden_states_with_repeats(loss_type: str, beta: float) -> None:
    config = GRPOConfig(group_size=4, loss_type=loss_type, epsilon_high=1.5, beta=beta)
    model, groups = rolled_out(config, [0, 1, 2, 3])
    parts, parameters = backbone(model), list(model.parameters())
    reference = completion_log_probs(tiny_model("qwen2", seed=9), groups) if beta else None
    result = group_loss(model, (lambda _: reference) if beta else None, groups, config, 7.0)
    hidden = completion_hidden(parts, groups.input_ids, groups.attention_mask, groups.token_ids)
    expected = tawin_grpo_loss(
        hidden,
        parts.weight,
        groups.token_ids,
        groups.mask,
        groups.rewards,
        groups.scores,
        tawin=config.tawin.kernel_options(),
        ref_log_probs=reference,
        loss_type=loss_type,
        epsilon_high=1.5,
        beta=beta,
        denominator=7.0,
    )
    torch.testing.assert_close(result.loss, expected.loss)
    pairs = zip(
        torch.autograd.grad(result.loss, parameters), torch.autograd.grad(expected.loss, parameters), strict=True
    )
    for got, wanted in pairs:
        # fp32 sums in another order
        torch.testing.assert_close(got, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-3)


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


@pytest.mark.parametrize("negatives", ["beam", "sample"])
def test_over_the_trie_the_gradient_is_that_of_the_log_probs_over_the_children(negatives: str) -> None:
    config = GRPOConfig(group_size=4, negatives=negatives, normalizer="trie", tawin=TAWinConfig(enabled=False))
    model, groups = rolled_out(config, [0, 1, 2, 3, 4, 5, 6])
    assert groups.live.any()
    parts, parameters = backbone(model), list(model.parameters())
    result = group_loss(model, None, groups, config, 7.0)
    hidden = completion_hidden(parts, groups.input_ids, groups.attention_mask, groups.token_ids)
    logits = hidden @ parts.weight.T
    children = torch.zeros_like(logits, dtype=torch.bool)
    items = small_catalog().token_ids.tolist()
    for place, token in ((place, int(token)) for place, token in np.ndenumerate(groups.token_ids.numpy())):
        prefix = groups.token_ids[place[0], place[1], : place[2]].tolist()
        follows = [item[place[2]] for item in items if token >= 0 and item[: place[2]] == prefix]
        children[place][follows if follows else slice(None)] = True
    log_probs = logits.masked_fill(~children, -torch.inf).log_softmax(-1)
    log_probs = log_probs.gather(-1, groups.token_ids.clamp_min(0)[..., None])[..., 0].masked_fill(~groups.mask, 0.0)
    # At ratio 1 the gradient is that of -A log p, averaged over the tokens of each completion.
    loss = -(result.advantages[..., None] * log_probs / groups.mask.sum(-1, keepdim=True).clamp_min(1)).sum() / 7.0
    pairs = zip(torch.autograd.grad(result.loss, parameters), torch.autograd.grad(loss, parameters), strict=True)
    for got, wanted in pairs:
        # fp32 sums in another order
        torch.testing.assert_close(got, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-3)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_the_kl_to_oneself_is_zero_and_to_another_model_is_not(normalizer: str) -> None:
    config = GRPOConfig(group_size=4, beta=0.1, normalizer=normalizer)
    model, groups = rolled_out(config, [0, 1, 2])
    denominator = loss_denominator([groups], "grpo")
    same = group_loss(model, lambda g: completion_log_probs(model, g), groups, config, denominator)
    assert float(same.kl) == pytest.approx(0.0, abs=1e-6)
    other = tiny_model("qwen2", seed=9)
    different = group_loss(model, lambda g: completion_log_probs(other, g), groups, config, denominator)
    assert float(different.kl) > 0.01


def test_the_model_is_back_in_training_mode_after_a_rollout() -> None:
    model = tiny_model("qwen2").train()
    input_ids, mask = ragged_prompts(2, 3)
    roll_out(model, small_catalog(), input_ids, mask, torch.tensor([0, 1]), GRPOConfig(group_size=2), torch.Generator())
    assert model.training
