"""TAWin for verl, without verl: what each row of a batch gets, and what is refused.

How verl 0.9.1 calls a registered estimator is written down in `as_verl_calls`, so that it is tested everywhere;
test_verl_itself.py holds the real one to it.
"""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import TAWin

from tawin.integrations.verl import advantages_by_index, passing_log_probs, tawin_advantages, tawin_from_config

from .verl_batches import group_by_group, responses

CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # fp32: the sums of a padded group may be added in another order


def as_verl_calls(data: Any, adv_estimator: Any, config: Any = None) -> Any:
    """verl 0.9.1's compute_advantage for an estimator of one's own, as far as such an estimator can tell."""
    advantages, returns = adv_estimator(
        token_level_rewards=data.batch["token_level_rewards"],
        response_mask=data.batch["response_mask"],
        config=config,
        index=data.non_tensor_batch["uid"],
    )
    data.batch["advantages"], data.batch["returns"] = advantages, returns
    return data


def estimate(batch: dict[str, torch.Tensor], uids: Any, config: Any = None) -> torch.Tensor:
    kwargs = {name: batch[name] for name in ("token_level_rewards", "response_mask", "old_log_probs")}
    advantages, returns = tawin_advantages(**kwargs, index=uids, config=config)
    torch.testing.assert_close(returns, advantages, rtol=0, atol=0)
    return advantages


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
    padding=st.integers(0, 3),
    anchor=st.sampled_from([0.0, 1.0, 3.5]),
    window=st.sampled_from([1.0, 2.0, 16.0]),
    normalize_std=st.booleans(),
)
def test_rows_in_any_order_get_what_their_group_gets_alone(sizes, seed, padding, anchor, window, normalize_std):
    batch, uids = responses(sizes, seed=seed, padding=padding)
    config = {"tawin": {"anchor": anchor, "window": window}, "norm_adv_by_std_in_grpo": normalize_std}
    expected = group_by_group(batch, uids, tawin=TAWin(anchor=anchor, window=window), normalize_std=normalize_std)
    torch.testing.assert_close(estimate(batch, uids, config), expected, **CLOSE)


def test_the_weights_are_those_of_the_formula():
    # One hit, three negatives of log p -1, -2, -3 and a narrow window around the first, which gets all their weight.
    batch = {
        "token_level_rewards": torch.tensor([[0.0], [1.0], [0.0], [0.0]]),
        "response_mask": torch.ones(4, 1),
        "old_log_probs": torch.tensor([[-2.0], [-9.0], [-1.0], [-3.0]]),
    }
    advantages = estimate(batch, [7, 7, 7, 7], {"tawin": {"anchor": 0, "temperature": 1e-3}})[:, 0]
    scale = 1 / (0.5 + 1e-4)  # the unbiased deviation of 1, 0, 0, 0 is 1/2
    expected = torch.tensor([0.0, 0.75 * scale, 3 * -0.25 * scale, 0.0])
    torch.testing.assert_close(advantages, expected, **CLOSE)


def test_the_order_of_the_rows_only_orders_the_result():
    batch, uids = responses([8, 3, 5], seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(estimate(shuffled, [uids[i] for i in order]), estimate(batch, uids)[order], **CLOSE)


def test_a_response_that_was_rejected_as_a_whole_counts_nowhere_in_its_group():
    batch, uids = responses([8, 8, 8], seed=7)
    batch["response_mask"][::5] = 0  # verl hides their tokens and leaves their rewards
    assert batch["token_level_rewards"][::5].any()
    advantages = estimate(batch, uids)
    assert not advantages[::5].any()
    torch.testing.assert_close(advantages, group_by_group(batch, uids, tawin=TAWin()), **CLOSE)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1e30, 1.0, 0.0, -1.0], [1.5, -0.5, -0.5, -0.5]),
        ([3e38, 0.0, 3e38, 3e38], [0.5, -1.5, 0.5, 0.5]),
        ([10_000.0, 10_000.01, 10_000.02, 10_000.03], None),
    ],
)
def test_rewards_that_sums_in_fp32_lose_are_told_apart(rewards, expected):
    # In two tokens whose sum fp32 does not hold.
    by_token = torch.tensor([[reward, 1e-4 if expected is None else 0.0] for reward in rewards])
    advantages, _ = tawin_advantages(
        by_token,
        torch.ones(4, 2),
        {"tawin": {"window": 4}},
        ["a"] * 4,
        old_log_probs=torch.zeros(4, 2),
    )
    exact = by_token.double().sum(-1)
    right = (exact - exact.mean()) / (exact.std() + 1e-4) if expected is None else torch.tensor(expected).double()
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages.double(), right[:, None].expand(4, 2), atol=1e-6, rtol=1e-6)


def test_dead_groups_groups_of_one_and_padding_get_exactly_nothing():
    batch, uids = responses([4, 3, 1], seed=0, padding=2)
    rewards = {"group-0": 0.1, "group-1": 0.0, "group-2": 1.0, "pad": 0.0}
    batch["token_level_rewards"] = torch.tensor([[rewards[uid], 0.0, 0.0, 0.0, 0.0] for uid in uids])
    assert not estimate(batch, uids).any()


@pytest.mark.parametrize("as_index", [list, torch.tensor, lambda uids: __import__("numpy").array(uids, dtype=object)])
def test_uids_may_be_a_list_an_array_or_a_tensor(as_index):
    batch, uids = responses([4, 6], seed=3)
    numbers = [int(uid[-1]) for uid in uids]
    torch.testing.assert_close(estimate(batch, as_index(numbers)), estimate(batch, uids), rtol=0, atol=0)


def test_what_lies_behind_a_response_is_never_read_and_adds_nothing():
    batch, uids = responses([6, 6], seed=4)
    expected = estimate(batch, uids)
    batch["old_log_probs"] = batch["old_log_probs"].masked_fill(batch["response_mask"] == 0, math.nan)
    wider = {name: torch.nn.functional.pad(tensor, (0, 7)) for name, tensor in batch.items()}
    torch.testing.assert_close(estimate(wider, uids)[:, :5], expected, rtol=0, atol=0)
    assert not estimate(wider, uids)[:, 5:].any()


def test_an_empty_batch_has_no_advantages():
    assert tawin_advantages(*torch.zeros(2, 0, 3), index=[], old_log_probs=torch.zeros(0, 3))[0].shape == (0, 3)


def test_the_window_comes_from_the_config():
    assert tawin_from_config(None) == tawin_from_config({}) == tawin_from_config({"tawin": None}) == TAWin()
    options = {"anchor": 4, "window": 2.0, "temperature": 0.5, "rank_transform": "log2"}
    assert tawin_from_config({"tawin": options}) == TAWin(4, 2.0, 0.5, "log2")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"tawin": {"anker": 2}}, ValueError, r"algorithm\.tawin: expected options among anchor, .* got anker"),
        ({"tawin": 3}, TypeError, r"algorithm\.tawin: expected options .* got 3"),
        ({"tawin": {"anchor": -1}}, ValueError, r"TAWin\.anchor: expected a finite number >= 0, got -1"),
        ({"use_kl_in_reward": True}, ValueError, r"use_kl_in_reward: expected False .*use_kl_loss"),
        (
            {"rollout_correction": {"rollout_rs": "seq_sum_k1,token_k2"}},
            ValueError,
            r"rollout_rs: expected None or seq_",
        ),
    ],
)
def test_a_config_that_would_mean_something_else_is_refused(config, error, message):
    batch, uids = responses([3, 3], seed=0)
    with pytest.raises(error, match=message):
        estimate(batch, uids, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": None}, r"index: expected the uid of each row, got None"),
        ({"index": ["a"] * 5}, r"index: expected a value for each of the 6 rows, got 5"),
        ({"old_log_probs": None}, r"old_log_probs: .*VERL_USE_EXTERNAL_MODULES=tawin\.integrations\.verl"),
        ({"old_log_probs": torch.zeros(6, 4)}, r"old_log_probs: expected the shape .* got \[6, 4\] for \[6, 5\]"),
        ({"response_mask": torch.ones(6)}, r"response_mask: expected the shape .* got \[6\] for \[6, 5\]"),
        ({"old_log_probs": torch.full((6, 5), math.nan)}, r"scores: "),
        ({"token_level_rewards": torch.full((6, 5), math.inf)}, r"rewards: "),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    batch, uids = responses([3, 3], seed=0)
    batch["response_mask"] = torch.ones(6, 5)
    del batch["rollout_log_probs"]
    with pytest.raises(ValueError, match=message):
        tawin_advantages(**{**batch, "index": uids, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(1)}, r"scores: expected one value per row, as rewards \[N\] has, got \[1\] for \[4\]"),
        ({"valid": torch.ones(5, dtype=torch.bool)}, r"valid: expected one value per row, .* got \[5\] for \[4\]"),
        ({"rewards": torch.ones(4, 1)}, r"rewards: expected one value per row, .* got \[4, 1\]"),
    ],
)
def test_rows_that_do_not_go_together_are_refused_and_never_stretched(change, message):
    rows = {"rewards": torch.eye(4)[0], "scores": torch.zeros(4), "valid": torch.ones(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        advantages_by_index(**{**rows, **change}, index=["a"] * 4, tawin=None)


@pytest.mark.parametrize("log_probs", ["old_log_probs", "rollout_log_probs"])
def test_called_as_verl_calls_it_the_estimator_ranks_by_the_log_probs_of_the_batch(log_probs):
    batch, uids = responses([8, 8, 5], seed=5, padding=1)
    if log_probs == "rollout_log_probs":  # where the actor has computed none
        del batch["old_log_probs"]
    expected = group_by_group(batch, uids, log_probs, tawin=TAWin(anchor=1))
    data = SimpleNamespace(batch=batch, non_tensor_batch={"uid": uids})
    config = {"tawin": {"anchor": 1}, "adv_estimator": "tawin"}
    assert passing_log_probs(as_verl_calls)(data, tawin_advantages, config=config) is data
    torch.testing.assert_close(data.batch["advantages"], expected, **CLOSE)


def test_log_probs_of_one_batch_never_reach_the_next():
    batch, uids = responses([4], seed=6)
    data = SimpleNamespace(batch=batch, non_tensor_batch={"uid": uids})
    passing_log_probs(as_verl_calls)(data, tawin_advantages)
    with pytest.raises(TypeError, match=r"algorithm\.tawin"):
        passing_log_probs(as_verl_calls)(data, tawin_advantages, config={"tawin": 1})
    with pytest.raises(ValueError, match="old_log_probs"):
        as_verl_calls(data, tawin_advantages)
    without = SimpleNamespace(
        batch={name: batch[name] for name in ("token_level_rewards", "response_mask")}, non_tensor_batch={"uid": uids}
    )
    with pytest.raises(ValueError, match="old_log_probs"):
        passing_log_probs(as_verl_calls)(without, tawin_advantages)


def test_importing_the_integration_needs_torch_and_triton_alone():
    blocked = ["transformers", "numpy", "scipy", "sklearn", "pyarrow", "yaml", "tyro", "verl"]
    script = f"import sys; sys.path[:0] = {sys.path!r}; sys.modules.update(dict.fromkeys({blocked!r}))"
    script += "; import tawin.integrations.verl"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
