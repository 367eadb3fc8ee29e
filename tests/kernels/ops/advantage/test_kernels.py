"""tawin_weights and group_advantages in Triton against the reference ops in fp64, and what they do not read or take."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import TAWin, group_advantages, reference, tawin_weights
from tawin_kernels.launch import Target, recorded_launches
from tawin_kernels.ops.advantage.kernels import GroupRewards, triton_group_advantages

from ...devices import DEVICE

NAN = math.nan
INF = math.inf
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# NumPy, which the interpreter runs on, says so where a rank distance over a temperature of 1e-300 is infinite.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")

# Both sides compute in fp64 and the kernel's result is rounded to fp32 once, 2**-24 relative.
TOLERANCE = {"rtol": 2e-7, "atol": 2e-7}

windows = st.builds(
    TAWin,
    anchor=st.sampled_from([0, 1, 2.5, 7, 100, 1e12]),
    window=st.sampled_from([0.01, 0.5, 1, 1.5, 2, 3.3, 7.999999, 20]),
    temperature=st.sampled_from([1e-300, 1e-8, 0.05, 1, 20, 1e8, 1e300]),
    rank_transform=st.sampled_from(["identity", "log2", "fraction"]),
)


@st.composite
def groups(draw):
    """Rewards, scores and valid [2, G]: many ties, -inf, groups of only positives or only negatives, or of neither."""
    G = draw(st.sampled_from([1, 2, 3, 5, 8, 13, 17, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rewards = (torch.rand(2, G, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))).float()
    scores = torch.randn(2, G, generator=generator).mul(2).round() / 2
    scores[torch.rand(2, G, generator=generator) < 0.1] = -INF
    valid = torch.rand(2, G, generator=generator) < draw(st.sampled_from([0.0, 0.8, 1.0]))
    return rewards * draw(st.sampled_from([1.0, 0.1])), scores, valid


@given(groups(), windows, st.sampled_from(DTYPES))
@settings(max_examples=60)
def test_weights_are_those_of_the_reference(group, tawin, dtype):
    _, scores, negatives = group
    scores, negatives = scores.to(dtype).to(DEVICE), negatives.to(DEVICE)
    weights = tawin_weights(scores, negatives, tawin, impl="triton")
    assert weights.dtype == torch.float32
    expected = reference.tawin_weights(scores.double(), negatives, tawin)
    torch.testing.assert_close(weights.double(), expected, **TOLERANCE)


@given(
    groups(),
    st.none() | windows,
    st.booleans(),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.sampled_from(DTYPES),
    st.sampled_from((*DTYPES, torch.float64)),
)
@settings(max_examples=60)
def test_advantages_are_those_of_the_reference_and_what_is_not_valid_is_not_read(
    group, tawin, normalize_std, eps, reward_dtype, score_dtype
):
    rewards, scores, valid = group
    rewards = rewards.masked_fill(~valid, NAN).to(reward_dtype).to(DEVICE)
    scores, valid = scores.masked_fill(~valid, NAN).to(score_dtype).to(DEVICE), valid.to(DEVICE)
    options = {"tawin": tawin, "normalize_std": normalize_std, "eps": eps, "valid": valid}
    advantages = group_advantages(rewards, scores, **options, impl="triton")
    assert advantages.dtype == torch.float32
    expected = reference.group_advantages(rewards.double(), scores, **options)
    torch.testing.assert_close(advantages.double(), expected, **TOLERANCE)


@pytest.mark.parametrize("G", [1, 512])
def test_the_smallest_and_the_largest_group_are_those_of_the_reference(G):
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(1, G, generator=generator) < 0.1).float().to(DEVICE)
    scores = torch.randn(1, G, generator=generator).mul(4).round().to(DEVICE)  # a few dozen distinct ones
    tawin = TAWin(anchor=101.5, window=37.5, temperature=3.0, rank_transform="log2")
    advantages = group_advantages(rewards, scores, tawin=tawin, impl="triton")
    expected = reference.group_advantages(rewards.double(), scores, tawin=tawin)
    torch.testing.assert_close(advantages.double(), expected, **TOLERANCE)


@pytest.mark.parametrize("rank_transform", ["identity", "log2", "fraction"])
@pytest.mark.parametrize("anchor", [0, 2.5, 100])
@pytest.mark.parametrize("window", [4.999, 4.2])
def test_a_window_of_almost_all_negatives_reaches_the_rank_farthest_from_the_anchor(rank_transform, anchor, window):
    scores = -torch.arange(5.0, device=DEVICE)[None]
    negatives = torch.ones(1, 5, dtype=torch.bool, device=DEVICE)
    tawin = TAWin(anchor=anchor, window=window, rank_transform=rank_transform)
    weights = tawin_weights(scores, negatives, tawin, impl="triton")
    torch.testing.assert_close(
        weights.double(), reference.tawin_weights(scores.double(), negatives, tawin), **TOLERANCE
    )


def test_scores_in_fp64_rank_what_fp32_cannot_tell_apart():
    scores = torch.tensor([[0.5, 0.5 + 1e-12, 0.5 + 2e-12, 0.0]], dtype=torch.float64, device=DEVICE)
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]], device=DEVICE)
    advantages = group_advantages(rewards, scores, tawin=TAWin(anchor=0, temperature=1e-6), impl="triton")
    assert [value != 0 for value in advantages[0].tolist()] == [False, False, True, True]


def test_zeros_of_either_sign_tie():
    scores = torch.tensor([[-1.0, 0.0, -0.0, -INF, -INF]], device=DEVICE)
    negatives = torch.ones(1, 5, dtype=torch.bool, device=DEVICE)
    for rank, index in enumerate([1, 2, 0, 3, 4]):
        weights = tawin_weights(scores, negatives, TAWin(anchor=rank, temperature=1e-6), impl="triton")
        assert weights[0].tolist() == [5.0 * (i == index) for i in range(5)]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.7])
def test_a_dead_group_gets_exactly_zero(reward):
    rewards = torch.full((1, 7), reward, device=DEVICE)
    advantages = group_advantages(rewards, torch.zeros_like(rewards), tawin=TAWin(), eps=0.0, impl="triton")
    assert advantages.tolist() == [[0.0] * 7]
    # fp64 rewards, as tawin_grpo_loss takes them beside fp32 states: 3 times 0.1 over 3 is not 0.1.
    rewards = torch.full((1, 3), reward, dtype=torch.float64, device=DEVICE)
    assert triton_group_advantages(GroupRewards(rewards, None, None, False, 0.0), None).tolist() == [[0.0] * 3]


def test_strided_input_gives_the_same_bits_as_contiguous_input_and_a_second_run_too():
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(6, 3, generator=generator) < 0.3).float().to(DEVICE).T
    scores = torch.randn(6, 6, generator=generator).to(DEVICE)[::2]
    valid = torch.ones(6, 1, dtype=torch.bool, device=DEVICE).expand(6, 3).T
    runs = [
        group_advantages(*(tensors[:2]), valid=tensors[2], tawin=TAWin(), impl="triton")
        for tensors in ((rewards, scores, valid), [t.contiguous() for t in (rewards, scores, valid)])
    ]
    assert torch.equal(*runs)


def test_no_group_at_all_is_no_work():
    nothing = torch.zeros(0, 3, device=DEVICE)
    assert tawin_weights(nothing, nothing.bool(), TAWin(), impl="triton").shape == (0, 3)
    assert group_advantages(nothing, nothing, tawin=TAWin(), impl="triton").shape == (0, 3)


def test_groups_beyond_the_kernel_are_refused_by_name():
    wide = torch.zeros(1, 513, device=DEVICE)
    with pytest.raises(
        ValueError, match=r"scores: expected at most 512 completions a group .*got 513; use impl='auto'"
    ):
        tawin_weights(wide, wide == 0, TAWin(), impl="triton")
    with pytest.raises(ValueError, match="rewards: expected at most 512 completions a group"):
        group_advantages(wide, impl="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_groups_beyond_the_kernel_run_in_pytorch_where_they_may(dtype):
    rewards = torch.zeros(1, 513, dtype=dtype, device=DEVICE)
    rewards[0, ::100] = 1.0
    scores = torch.randn(1, 513, device=DEVICE)
    advantages = triton_group_advantages(GroupRewards(rewards, scores, TAWin(), True, 1e-4), None)
    assert advantages.dtype == torch.float32
    expected = reference.group_advantages(rewards.double(), scores, tawin=TAWin())
    torch.testing.assert_close(advantages.double(), expected, atol=1e-5, rtol=1e-5)  # fp32 sums of 513 rewards


def test_fp64_rewards_are_refused_by_triton_and_taken_by_auto():
    rewards = torch.eye(2, 3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(TypeError, match="group_advantages in Triton takes float32"):
        group_advantages(rewards, impl="triton")
    assert group_advantages(rewards).dtype == torch.float64


def test_bad_input_is_refused_before_anything_is_launched():
    rewards = torch.eye(2, 3, device=DEVICE)
    with pytest.raises(ValueError, match="scores: expected a tensor"):
        group_advantages(rewards, tawin=TAWin(), impl="triton")
    with pytest.raises(TypeError, match="negatives: expected dtype bool"):
        tawin_weights(rewards, rewards, TAWin(), impl="triton")
    with pytest.raises(ValueError, match="scores: expected no NaN"):
        group_advantages(rewards, rewards * NAN, tawin=TAWin(), impl="triton", check_values=True)


def test_the_numbers_of_a_window_are_fp64_and_none_is_compiled_in():
    tensors = [torch.empty(4, 16, device="meta") for _ in range(2)]
    with recorded_launches(Target("cuda", "90")) as launches:
        for tawin in (TAWin(), TAWin(anchor=0.1, window=2.5, temperature=1e-300)):
            triton_group_advantages(GroupRewards(tensors[0], tensors[1], tawin, True, 1e-4), None)
    assert [launch.grid for launch in launches] == [(4,), (4,)]  # one launch each, one program a group
    types = launches[0].kernel.fn.__annotations__
    assert all(types[name] == "tl.float64" for name in ("anchor", "window", "temperature", "eps"))
    constants = [name for name, annotation in types.items() if annotation == "tl.constexpr"]
    assert len({str([launch.arguments[name] for name in constants]) for launch in launches}) == 1
