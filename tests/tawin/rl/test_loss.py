"""The loss of groups: that leaving dead groups out changes nothing, gradients, the KL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tawin_kernels import ItemTrie, tawin_grpo_loss

from tawin.catalog.catalog import Catalog
from tawin.config import GRPOConfig, TAWinConfig
from tawin.model.backbone import backbone
from tawin.rl.groups import Groups
from tawin.rl.loss import completion_log_probs, group_loss, loss_denominator
from tawin.rl.rollout import roll_out
from tawin.search.completions import scored_tokens

from ..models import FAMILIES, completion_hidden, ragged_prompts, tiny_model
from ..small_groups import rolled_out, small_catalog


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


@pytest.mark.parametrize("negatives", ["beam", "sample"])
@pytest.mark.parametrize("count", ["tokens", "choices"])
def test_over_the_trie_the_gradient_is_that_of_the_log_probs_over_the_children(negatives: str, count: Any) -> None:
    options: Any = {"negatives": negatives, "normalizer": "trie", "count": count}
    config = GRPOConfig(group_size=4, tawin=TAWinConfig(enabled=False), **options)
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
    counted = groups.mask if count == "tokens" else groups.mask & (children.sum(-1) > 1)
    assert (counted.sum() < groups.mask.sum()) == (count == "choices")
    loss = -(result.advantages[..., None] * log_probs / counted.sum(-1, keepdim=True).clamp_min(1)).sum() / 7.0
    assert loss_denominator([groups], "dapo", count) == counted.sum()
    pairs = zip(torch.autograd.grad(result.loss, parameters), torch.autograd.grad(loss, parameters), strict=True)
    for got, wanted in pairs:
        # fp32 sums in another order
        torch.testing.assert_close(got, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shares_prompts", [False, True])
def test_over_the_trie_leaving_forced_tokens_out_changes_neither_loss_nor_gradients(
    family: str, shares_prompts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = tiny_model(family), tiny_model(family, seed=9)
    parameters, prompts = list(model.parameters()), ragged_prompts(3, 5)
    config = GRPOConfig(group_size=6, normalizer="trie", ensure_positive=True, beta=0.1)
    # Item 1 goes on by itself from its first token on, items 2 and 3 do so up to their last.
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [5, 13, 14, 15], [5, 13, 14, 16], [17, 6, 7, 8]])
    trie = ItemTrie.from_sequences(tokens)
    catalog = Catalog(np.arange(5), None, None, tokens, trie, trie.leaf_of_item, (1,), 0, None)
    groups = roll_out(
        model, catalog, *prompts, torch.tensor([0, 1, 2]), config, torch.Generator(), shares_prompts=shares_prompts
    )
    run: list[int] = []
    count = model.model.layers[0].register_forward_hook(lambda _layer, inputs, _out: run.append(inputs[0].shape[1]))
    results = []
    for wanted in (scored_tokens, lambda token_ids, trie, nodes: token_ids >= 0):
        monkeypatch.setattr("tawin.rl.loss.scored_tokens", wanted)
        monkeypatch.setattr("tawin.search.completions.scored_tokens", wanted)
        found = group_loss(model, lambda groups: completion_log_probs(reference, groups), groups, config, 7.0)
        gradients = torch.autograd.grad(found.loss, parameters, retain_graph=shares_prompts)
        results.append((found.loss, found.kl, found.log_probs, *gradients))
    count.remove()
    # Of the nodes that another one follows only 5, 5 13 and 5 13 14 stand above a choice, and 9 ... and 17 ... do not.
    assert run[1] - run[0] == 3 * (2 + 3 + 3)
    for got, expected in zip(*results, strict=True):  # fp32 sums in another order
        torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, float(expected.detach().abs().max())), rtol=1e-3)


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
