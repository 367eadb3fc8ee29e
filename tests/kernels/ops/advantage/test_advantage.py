"""tawin_weights and group_advantages: against bisection and plain loops, invariants, edge cases, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import TAWin, group_advantages, tawin_weights

from ... import brute_force

INF = math.inf
NAN = math.nan

windows = st.builds(
    TAWin,
    anchor=st.floats(0, 12) | st.integers(0, 12),
    window=st.floats(0.01, 12) | st.integers(1, 12),
    temperature=st.floats(0.05, 20),
    rank_transform=st.sampled_from(["identity", "log2", "fraction"]),
)
# Few distinct scores, so that ties are common; -inf ranks last.
some_scores = st.sampled_from([0.0, -0.0, -1.0, -2.0, -3.5, -INF]) | st.floats(-20, 0)


def groups(*columns: st.SearchStrategy, max_size: int = 10) -> st.SearchStrategy[list[list[tuple]]]:
    """[B][G] tuples, one value a column."""
    return st.integers(1, max_size).flatmap(
        lambda G: st.lists(st.lists(st.tuples(*columns), min_size=G, max_size=G), min_size=1, max_size=3)
    )


def column(rows: list[list[tuple]], index: int) -> list[list]:
    return [[entry[index] for entry in row] for row in rows]


@given(groups(some_scores, st.booleans()), windows)
def test_weights_are_those_of_a_bisection_for_lambda(rows, tawin):
    scores, negatives = column(rows, 0), column(rows, 1)
    weights = tawin_weights(torch.tensor(scores, dtype=torch.float64), torch.tensor(negatives), tawin)
    assert weights.dtype == torch.float64
    for b in range(len(rows)):
        expected = brute_force.window_weights(
            scores[b], negatives[b], tawin.anchor, tawin.window, tawin.temperature, tawin.rank_transform
        )
        assert weights[b].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)  # fp64, and the bisection's end


@given(groups(some_scores, st.booleans()), windows)
def test_the_window_has_its_mass_and_negatives_keep_theirs(rows, tawin):
    negatives = torch.tensor(column(rows, 1))
    weights = tawin_weights(torch.tensor(column(rows, 0), dtype=torch.float64), negatives, tawin)
    sizes = negatives.sum(-1).double()
    torch.testing.assert_close((weights * negatives).sum(-1), sizes, atol=1e-9, rtol=0)
    assert bool((weights[~negatives] == 1).all())
    # Unnormalised, T_i = w_i k / |N|: at most 1, and of sum min(k, |N|).
    raw = weights * (tawin.window / sizes.clamp(min=1.0)).clamp(max=1.0)[:, None]
    assert bool((raw[negatives] <= 1 + 1e-9).all())
    torch.testing.assert_close((raw * negatives).sum(-1), sizes.clamp(max=tawin.window), atol=1e-9, rtol=0)


@pytest.mark.parametrize("rank_transform", ["identity", "log2", "fraction"])
@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-8, 1e8, 1e300])
@pytest.mark.parametrize("window", [0.5, 1, 1.5, 2.25, 7.999999])
def test_weights_stay_exact_at_extreme_temperatures(rank_transform, temperature, window):
    scores = -torch.arange(8.0, dtype=torch.float64)[None]
    tawin = TAWin(anchor=2, window=window, temperature=temperature, rank_transform=rank_transform)
    weights = tawin_weights(scores, torch.ones(1, 8, dtype=torch.bool), tawin)
    raw = weights[0] * window / 8
    assert raw.sum().item() == pytest.approx(window, rel=1e-12)
    if temperature >= 1e8:  # far softer than the ranks are apart: uniform
        torch.testing.assert_close(raw, torch.full_like(raw, window / 8), atol=1e-6, rtol=0)
        return
    # So hard that the negatives fill up by distance to the anchor; those of the same distance share what is left.
    transform = {"identity": float, "log2": lambda r: math.log2(1 + r), "fraction": lambda r: r / 8}[rank_transform]
    distances = [abs(transform(rank) - transform(2)) for rank in range(8)]
    left, expected = float(window), [0.0] * 8
    for distance in sorted(set(distances)):
        level = [rank for rank in range(8) if distances[rank] == distance]
        for rank in level:
            expected[rank] = min(1.0, left / len(level))
        left = max(0.0, left - len(level))
    assert raw.tolist() == pytest.approx(expected, abs=1e-9)


def test_window_one_at_a_hard_temperature_is_the_single_negative_at_the_anchor():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]])
    negatives = torch.tensor([[True, False, True, True, True]])
    weights = tawin_weights(scores, negatives, TAWin(anchor=1, window=1, temperature=1e-6))
    assert weights.tolist() == [[0.0, 1.0, 4.0, 0.0, 0.0]]  # ranks of the negatives: 3, -, 1, 0, 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tied_scores_rank_by_lower_index(dtype):
    scores = torch.tensor([[-1.0, 0.0, -0.0, -INF, -INF]], dtype=dtype)
    negatives = torch.ones(1, 5, dtype=torch.bool)
    for rank, index in enumerate([1, 2, 0, 3, 4]):
        weights = tawin_weights(scores, negatives, TAWin(anchor=rank, window=1, temperature=1e-6))
        assert weights.dtype == torch.float32
        assert weights[0].tolist() == [5.0 * (i == index) for i in range(5)]


@pytest.mark.parametrize("window", [3, 3.0, 4, 1e9])
def test_a_window_of_all_negatives_leaves_plain_grpo(window):
    scores = torch.randn(2, 5)
    negatives = torch.tensor([[True, True, True, False, False], [False, True, False, False, False]])
    assert tawin_weights(scores, negatives, TAWin(window=window)).tolist() == [[1.0] * 5] * 2


def test_no_negative_leaves_nothing_to_weigh():
    assert tawin_weights(torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool), TAWin()).tolist() == [[1.0] * 3] * 2
    assert tawin_weights(torch.randn(0, 3), torch.zeros(0, 3, dtype=torch.bool), TAWin()).shape == (0, 3)


def test_moving_the_anchor_moves_the_window_along_the_ranks():
    scores = -torch.arange(10.0)[None]
    negatives = torch.ones(1, 10, dtype=torch.bool)
    for anchor in range(10):
        weights = tawin_weights(scores, negatives, TAWin(anchor=anchor, window=2))
        assert int(weights.argmax()) == anchor or weights[0, anchor] == weights.max()
        assert weights[0, : anchor + 1].tolist() == sorted(weights[0, : anchor + 1].tolist())
        assert weights[0, anchor:].tolist() == sorted(weights[0, anchor:].tolist(), reverse=True)


@given(
    groups(st.sampled_from([0.0, 1.0, -0.5, 0.25]), st.booleans(), some_scores),
    st.none() | windows,
    st.booleans(),
    st.sampled_from([1e-4, 0.1]),
)
def test_advantages_are_those_of_plain_loops(rows, tawin, normalize_std, eps):
    rewards, valid, scores = column(rows, 0), column(rows, 1), column(rows, 2)
    arguments = {"tawin": tawin, "normalize_std": normalize_std, "eps": eps, "valid": torch.tensor(valid)}
    got = group_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(scores), **arguments)
    assert got.dtype == torch.float64
    for b in range(len(rows)):
        fp32_scores = torch.tensor(scores[b]).tolist()
        negatives = [exists and reward <= 0 for reward, exists in zip(rewards[b], valid[b], strict=True)]
        weights = None
        if tawin is not None:
            weights = brute_force.window_weights(
                fp32_scores, negatives, tawin.anchor, tawin.window, tawin.temperature, tawin.rank_transform
            )
        expected = brute_force.advantages(rewards[b], valid[b], weights, normalize_std, eps)
        assert got[b].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("tawin", [None, TAWin()])
def test_what_is_not_valid_does_not_exist(tawin):
    rewards = torch.tensor([[1.0, NAN, 0.0, INF, 0.0, 0.0]])
    scores = torch.tensor([[-1.0, NAN, -2.0, 5.0, -INF, -4.0]])
    valid = torch.tensor([[True, False, True, False, True, True]])
    got = group_advantages(rewards, scores, tawin=tawin, valid=valid)
    alone = group_advantages(rewards[valid][None], scores[valid][None], tawin=tawin)
    assert torch.equal(got[valid][None], alone)
    assert got[~valid].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_dead_group_gets_exactly_zero(reward, dtype, normalize_std):
    rewards = torch.full((1, 7), reward, dtype=dtype)  # 7 times 0.1 over 7 is not 0.1: rounding dust
    got = group_advantages(rewards, torch.randn(1, 7), tawin=TAWin(), normalize_std=normalize_std, eps=0.0)
    assert got.tolist() == [[0.0] * 7]
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_single_valid_completion_or_none_gets_zero():
    rewards = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    valid = torch.tensor([[True, False, False], [False, False, False]])
    assert group_advantages(rewards, valid=valid).tolist() == [[0.0] * 3] * 2
    assert group_advantages(rewards[:, :1]).tolist() == [[0.0]] * 2
    assert group_advantages(rewards[:0]).shape == (0, 3)


def test_plain_advantages_are_those_of_trl():
    # (r - mean) / (std + 1e-4) with torch's unbiased std, as in TRL's GRPOTrainer.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), expected, atol=1e-6, rtol=0)


def test_positives_keep_their_advantage_and_negatives_their_total():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    scores = torch.randn(1, 6)
    plain = group_advantages(rewards)
    weighted = group_advantages(rewards, scores, tawin=TAWin(anchor=1))
    assert weighted[0, 0] == plain[0, 0]
    assert weighted.sum().item() == pytest.approx(plain.sum().item(), abs=1e-12)
    assert not torch.allclose(weighted, plain)


def test_weights_and_advantages_carry_no_gradient():
    scores = torch.randn(2, 4, requires_grad=True)
    rewards = torch.eye(2, 4).requires_grad_()
    assert not tawin_weights(scores, rewards <= 0, TAWin()).requires_grad
    assert not group_advantages(rewards, scores, tawin=TAWin()).requires_grad


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": torch.zeros(3)}, ValueError, r"scores: expected shape \[B, G\], got \[3\]"),
        ({"scores": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "scores: expected dtype .*got int64"),
        ({"scores": None}, TypeError, "scores: expected a tensor"),
        ({"scores": torch.tensor([[0.0, NAN, 0.0], [0.0, 0.0, 0.0]])}, ValueError, r"scores: .*nan at index \[0, 1\]"),
        (
            {"scores": torch.zeros(2, 0), "negatives": torch.zeros(2, 0, dtype=torch.bool)},
            ValueError,
            "scores: expected at least one completion",
        ),
        ({"negatives": torch.zeros(2, 3)}, TypeError, "negatives: expected dtype bool, got float32"),
        ({"negatives": torch.zeros(2, 2, dtype=torch.bool)}, ValueError, r"negatives: .*\[2, 3\], got \[2, 2\]"),
        ({"negatives": torch.zeros(2, 3, dtype=torch.bool, device="meta")}, ValueError, "negatives: expected device"),
        ({"tawin": None}, TypeError, "tawin: expected a TAWin, got NoneType"),
        ({"tawin": {"anchor": 2}}, TypeError, "tawin: expected a TAWin, got dict"),
    ],
)
def test_bad_input_of_tawin_weights_is_refused_by_name(changes, error, message):
    good = {"scores": torch.zeros(2, 3), "negatives": torch.ones(2, 3, dtype=torch.bool), "tawin": TAWin()}
    with pytest.raises(error, match=message):
        tawin_weights(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": torch.zeros(3)}, ValueError, r"rewards: expected shape \[B, G\]"),
        ({"rewards": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "rewards: expected dtype .*got int64"),
        ({"rewards": [[1.0]]}, TypeError, "rewards: expected a tensor .*got list"),
        ({"rewards": torch.zeros(2, 0)}, ValueError, "rewards: expected at least one completion"),
        ({"rewards": torch.tensor([[0.0, 0, 0], [0, 0, NAN]])}, ValueError, r"rewards: .*nan at index \[1, 2\]"),
        ({"rewards": torch.full((2, 3), INF)}, ValueError, "rewards: expected finite rewards, got inf"),
        ({"scores": None}, ValueError, "scores: expected a tensor .*tawin.*got None"),
        ({"scores": torch.zeros(3, 2)}, ValueError, r"scores: .*\[2, 3\], got \[3, 2\]"),
        ({"scores": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "scores: expected dtype"),
        ({"scores": torch.full((2, 3), NAN)}, ValueError, "scores: expected no NaN"),
        ({"scores": torch.full((2, 3), NAN), "tawin": None}, ValueError, "scores: expected no NaN"),
        ({"scores": torch.empty(2, 3, device="meta")}, ValueError, "scores: expected device cpu as rewards, got meta"),
        ({"tawin": "beam"}, TypeError, "tawin: expected a TAWin, got str"),
        ({"normalize_std": 1}, TypeError, "normalize_std"),
        ({"eps": -1e-4}, ValueError, "eps: expected a finite number >= 0"),
        ({"eps": NAN}, ValueError, "eps"),
        ({"eps": None}, TypeError, "eps"),
        ({"valid": torch.ones(2, 3)}, TypeError, "valid: expected dtype bool"),
        ({"valid": torch.ones(2, dtype=torch.bool)}, ValueError, r"valid: expected shape \[B, G\]"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool, device="meta")}, ValueError, "valid: expected device"),
    ],
)
def test_bad_input_of_group_advantages_is_refused_by_name(changes, error, message):
    good = {"rewards": torch.eye(2, 3), "scores": torch.zeros(2, 3), "tawin": TAWin()}
    with pytest.raises(error, match=message):
        group_advantages(**{**good, **changes})
