"""Lemma 3.1: GRPO's gradient is the margin's exactly, others' is not, and the limit is the one that is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.theory import auc_gradient
from experiments.theory.auc_gradient import (
    _random_coefficients,
    _random_groups,
    cosine,
    gradient,
    group_margins,
    loss_gradient,
    margin_constant,
    relative_error,
)
from tawin.config import GRPOConfig, TAWinConfig
from tawin.rl.loss import group_loss

from .small_options import AUC_GRADIENT as SMALL
from .small_setting import small_setting

# The two sides sum the same fp64 numbers in another order; 1e-12 is some thousand roundings.
EXACT = 1e-12


def test_the_relative_errors_of_the_exact_claims_are_rounding() -> None:
    values, series = auc_gradient.run(SMALL, 0)
    exact = {name: value for name, value in values.items() if name.startswith("relative error, ") and "hit" in name}
    assert len(exact) == 4
    assert max(exact.values()) < EXACT
    assert {len(points) for points in series.values()} == {7}  # 1, 2, ..., 64 groups


def test_the_same_seed_gives_the_same_figures() -> None:
    options = {**SMALL, "groups": 4, "steps": 0, "prompts": 2}
    assert auc_gradient.run(options, 3) == auc_gradient.run(options, 3)


def test_advantages_that_are_not_grpos_have_another_gradient() -> None:
    setting = small_setting()
    groups = _random_groups(setting, 6, torch.Generator().manual_seed(0))
    constant = margin_constant(torch.ones(6), 6, normalize_std=False) / (6 * 6)
    expected = gradient(setting, (constant * group_margins(setting, groups)).sum())
    assert relative_error(loss_gradient(setting, groups, loss_type="grpo", normalize_std=False), expected) < EXACT
    # The reward of one negative raised by a tenth: no longer binary, and no longer the margin.
    rewards = groups.rewards.clone()
    rewards[:, 0] += 0.1
    other = loss_gradient(setting, replace(groups, rewards=rewards), loss_type="grpo", normalize_std=False)
    assert relative_error(other, expected) > 1e-3
    # TAWin's weights are another objective by design.
    config = GRPOConfig(normalize_std=False, tawin=TAWinConfig(window=1.0))
    weighted = gradient(setting, -group_loss(setting.model, None, groups, config, 36.0).loss)
    assert relative_error(weighted, expected) > 1e-2


@pytest.mark.parametrize("normalize_std", [False, True])
def test_with_another_number_of_hits_the_constant_is_another(normalize_std: bool) -> None:
    constants = margin_constant(torch.arange(1, 6), 6, normalize_std)
    torch.testing.assert_close(constants, constants.flip(0))  # hits and others play the same part
    assert constants[0] < constants[1] < constants[2]
    if not normalize_std:
        assert constants[0] == pytest.approx(5 / 6)


def test_the_mean_gradient_of_random_groups_is_the_whole_catalogues_margin() -> None:
    setting = small_setting()
    targets, items = setting.targets, setting.catalog.num_items
    coefficients = _random_coefficients(setting, 4000, 6, torch.Generator().manual_seed(0)) / 4000
    expected = torch.full((len(targets), items), -5 / 6 / (items - 1), dtype=torch.float64)
    expected.scatter_(1, targets[:, None], 5 / 6)
    # A negative is in a group of six with probability 5 / 79 and gets -1/6 then: a deviation of 6e-4 over 4000 groups.
    torch.testing.assert_close(coefficients, expected, rtol=0, atol=5e-3)
    found = gradient(setting, (coefficients * setting.item_log_probs().sum(-1)).sum())
    wanted = gradient(setting, (expected * setting.item_log_probs().sum(-1)).sum())
    assert cosine(found, wanted) > 0.999
