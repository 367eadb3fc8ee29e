"""The peers' heads and losses give what our reference ops give; the benchmarks' inputs and checks do what they say.

Peers that are other packages are skipped where they are missing or want a GPU; ours are always tested.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tawin_kernels import TAWin, reference
from torch import Tensor

from bench.cases.loss import (
    CHILDREN,
    CPU_SHAPES,
    GROUP_SIZE,
    LENGTH,
    Answer,
    LossShape,
    answer_of,
    compare_answers,
    draw_beams,
    log_prob_error,
    make_inputs,
    shared_rows,
    work_of,
)
from bench.peers import (
    GROUP_LOSSES,
    LOG_PROB_HEADS,
    LossOptions,
    MissingPeer,
    compiled_chunks,
    group_loss,
    log_prob_head,
    torch_group_advantages,
)
from bench.peers.group_losses import loss_around

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Liger's SM90 kernel and Cut Cross-Entropy's backward take half precision only.
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
# fp32: sums of 16 products, and softmax sums of 40 terms, in another order. bf16: logits of up to 8 rounded by 1/64.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-2}[DTYPE]
OTHER_HEADS = [name for name in LOG_PROB_HEADS if name != "reference"]
OTHER_LOSSES = [name for name in GROUP_LOSSES if name not in LOG_PROB_HEADS or name in ("trl", "reference")]
B, G, L, H, V = 3, 4, 5, 16, 40


def unless_missing(make: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
    try:
        return make()
    except MissingPeer as missing:
        pytest.skip(str(missing))


def head_named(name: str) -> Callable[..., Tensor]:
    if name == "chunks":  # the compiled head without a C++ compiler: traced and cut into graphs all the same
        torch.compiler.reset()
        return compiled_chunks("aot_eager", rows_at_once=7)
    return unless_missing(lambda: log_prob_head(name, DEVICE))


def random_states(seed: int, *, head_trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, G, L, H] and lm_head_weight [V, H], leaves, and token_ids [B, G, L]."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, G, L, H, generator=draw).to(DEVICE, DTYPE).requires_grad_()
    weight = (torch.randn(V, H, generator=draw) / 2).to(DEVICE, DTYPE).requires_grad_(head_trained)
    return hidden, weight, torch.randint(V, (B, G, L), generator=draw).to(DEVICE)


def assert_gradients_equal(leaves: tuple[Tensor, Tensor], expected: list[Tensor | None]) -> None:
    """Within the tolerance, of the largest element."""
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert (leaf.grad is None) == (gradient is None)
        if gradient is not None:
            atol = TOLERANCE * float(gradient.abs().max())
            torch.testing.assert_close(leaf.grad, gradient, atol=atol, rtol=0)


@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["chunks", *OTHER_HEADS])
def test_heads_give_the_log_probs_and_gradients_of_the_reference(
    name: str, temperature: float, head_trained: bool
) -> None:
    head = head_named(name)
    hidden, weight, token_ids = random_states(1, head_trained=head_trained)
    above = torch.randn(B * G * L, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    above[::3] = 0.0
    expected = reference.linear_log_probs(hidden.flatten(0, 2), weight, token_ids.flatten(), temperature=temperature)
    expected.backward(above)
    gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    got = head(hidden.flatten(0, 2), weight, token_ids.flatten(), temperature)
    got.backward(above)
    torch.testing.assert_close(got, expected, atol=2 * TOLERANCE, rtol=0)
    assert_gradients_equal((hidden, weight), gradients)


@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("on_policy", [True, False], ids=["on policy", "off policy"])
@pytest.mark.parametrize("name", ["chunks", *OTHER_LOSSES])
def test_losses_give_the_loss_and_gradients_of_the_reference(
    name: str, on_policy: bool, loss_type: str, head_trained: bool
) -> None:
    options = LossOptions(loss_type=loss_type, epsilon_low=0.1, epsilon_high=0.3, temperature=0.9)
    if name == "chunks":
        loss = loss_around(head_named(name), options)
    else:
        loss = unless_missing(lambda: group_loss(name, DEVICE, options))
    hidden, weight, token_ids = random_states(4, head_trained=head_trained)
    draw = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, L + 1, (B, G, 1), generator=draw)
    mask = (torch.arange(L) < lengths).to(DEVICE)
    advantages = torch.randn(B, G, generator=draw).to(DEVICE)
    advantages[1] = 0.0  # a dead group
    log_probs = reference.linear_log_probs(hidden, weight, token_ids, temperature=0.9)
    old = None if on_policy else log_probs.detach() + 0.3 * torch.randn(B, G, L, generator=draw).to(DEVICE)

    expected = reference.grpo_loss(
        log_probs,
        mask,
        advantages,
        old_log_probs=old,
        loss_type=loss_type,  # type: ignore[arg-type]
        epsilon_low=0.1,
        epsilon_high=0.3,
    )
    if not on_policy:
        assert 0 < float(expected.clip_fraction) < 1, "nothing or everything is clipped: the case is too easy"
    expected.loss.backward()
    gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    got = loss(hidden, weight, token_ids, mask, advantages, old)
    got.backward()
    torch.testing.assert_close(got.detach(), expected.loss.detach(), atol=TOLERANCE, rtol=0)
    assert_gradients_equal((hidden, weight), gradients)


@pytest.mark.parametrize("tawin", [TAWin(), TAWin(4.0, 3.0, 0.3), TAWin(9.0, 2.5), TAWin(0.0, 40.0)])
@pytest.mark.parametrize("rank_transform", ["identity", "log2", "fraction"])
@pytest.mark.parametrize("group_size", [2, 16, 33])
def test_advantages_without_a_loop_are_those_of_the_reference(
    group_size: int, rank_transform: str, tawin: TAWin
) -> None:
    tawin = replace(tawin, rank_transform=rank_transform)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(group_size)
    rewards = (torch.rand(20, group_size, generator=draw) < 0.2).float()
    rewards[0], rewards[1] = 0.0, 1.0  # dead groups
    scores = torch.randn(20, group_size, generator=draw).round(decimals=1)  # some tie
    expected = reference.group_advantages(rewards, scores, tawin=tawin)
    # fp32 means, deviations and products in another order.
    torch.testing.assert_close(torch_group_advantages(rewards, scores, tawin), expected, atol=1e-6, rtol=1e-5)


def test_beams_are_distinct_descend_and_share_half_of_their_states() -> None:
    codes, scores = draw_beams(64)
    assert codes.shape == (64, GROUP_SIZE, LENGTH) and scores.shape == (64, GROUP_SIZE)
    assert all(len(group.unique(dim=0)) == GROUP_SIZE for group in codes)
    assert bool((scores.diff(dim=1) <= 0).all())
    assert bool((codes < torch.tensor(CHILDREN)).all())
    rows = shared_rows(codes)
    assert 0.45 < (int(rows.max()) + 1) / rows.numel() < 0.55


def test_tokens_share_a_row_if_and_only_if_their_prefixes_are_equal() -> None:
    token_ids = torch.tensor([[[5, 6, 7], [5, 6, 8], [5, 9, 7], [4, 6, 7]], [[5, 6, 7]] * 3 + [[5, 6, 8]]])
    rows = shared_rows(token_ids)
    row_of: dict[tuple[int, ...], int] = {}
    for group in range(2):
        for member in range(4):
            for depth in range(3):
                prefix = (group, *token_ids[group, member, :depth].tolist())
                assert row_of.setdefault(prefix, int(rows[group, member, depth])) == rows[group, member, depth]
    assert sorted(row_of.values()) == list(range(len(row_of)))


def test_inputs_are_live_and_shared_as_the_shape_says() -> None:
    shape = LossShape(1280, 8, 200, live=0.25, is_shared=True, dtype=torch.float32)
    inputs = make_inputs(shape)
    assert float((inputs.advantages != 0).any(-1).float().mean()) == 0.25
    assert len(inputs.hidden) < 1280 and torch.equal(inputs.hidden[inputs.rows], inputs.repeated_hidden)
    assert int(inputs.token_ids.min()) >= 0 and int(inputs.token_ids.max()) < 200
    distinct = make_inputs(replace(shape, is_shared=False))
    assert len(distinct.hidden) == 1280


def test_the_work_is_that_of_the_live_distinct_rows() -> None:
    shape = LossShape(512, 8, 200, dtype=torch.float32)
    whole = work_of(shape, make_inputs(shape), skips_dead=True)
    assert whole.flops == 3 * 2 * 512 * 200 * 8
    shape = replace(shape, live=0.5, is_head_trained=True)
    inputs = make_inputs(shape)
    assert work_of(shape, inputs, skips_dead=False).flops == (512 + 3 * 256) * 2 * 200 * 8
    assert work_of(shape, inputs, skips_dead=True).flops == 4 * 256 * 2 * 200 * 8
    assert math.isclose(
        work_of(LossShape(), make_inputs(replace(LossShape(), hidden_size=1, vocabulary=200)), skips_dead=True).flops,
        6 * 16_384 * 151_936 * 896,
    )


def test_the_error_against_fp64_sees_a_wrong_log_prob() -> None:
    shape = replace(CPU_SHAPES["small step"], hidden_size=8, vocabulary=200)
    inputs = make_inputs(shape)
    log_probs = reference.linear_log_probs(inputs.repeated_hidden, inputs.lm_head_weight, inputs.token_ids).detach()
    assert log_prob_error(log_probs, inputs) < 1e-5
    is_dead = (inputs.advantages == 0)[..., None].expand_as(log_probs)
    assert log_prob_error(log_probs.masked_fill(is_dead, 0.0), inputs, live_only=True) < 1e-5
    assert log_prob_error(log_probs.masked_fill(is_dead, 0.0), inputs) > 1.0


def test_gradients_of_repeated_states_add_up_to_those_of_their_rows() -> None:
    shape = replace(CPU_SHAPES["small step"], hidden_size=8, vocabulary=200)
    inputs = make_inputs(shape)
    head = inputs.lm_head_weight
    answers = []
    for states, rows in ((inputs.hidden, inputs.rows), (inputs.repeated_hidden, None)):
        log_probs = reference.linear_log_probs(states, head, inputs.token_ids, rows=rows)
        log_probs.backward(inputs.advantages[..., None].expand_as(log_probs))
        answers.append(answer_of(log_probs, inputs))
    assert inputs.hidden.grad is None and inputs.repeated_hidden.grad is None
    assert "gradient of the hidden" in compare_answers(*answers, torch.float32)


def test_a_wrong_answer_is_told() -> None:
    right = Answer(torch.zeros(3), torch.ones(3, 2), torch.ones(4, 2))
    assert "within 0.0" in compare_answers(right, right, torch.float32)
    with pytest.raises(AssertionError, match="values differ"):
        compare_answers(right, replace(right, value=torch.ones(3)), torch.bfloat16)
    with pytest.raises(AssertionError, match="gradients of the hidden"):
        compare_answers(right, replace(right, hidden_gradient=torch.full((3, 2), 1.2)), torch.bfloat16)
    with pytest.raises(AssertionError, match="gradients of the head"):
        compare_answers(right, replace(right, head_gradient=torch.full((4, 2), 1.2)), torch.bfloat16)
    with pytest.raises(AssertionError, match="only one way"):
        compare_answers(right, replace(right, head_gradient=None), torch.float32)


def test_a_missing_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", None)
    with pytest.raises(MissingPeer, match=r"pip install 'trl>=1\.16'"):
        log_prob_head("trl", DEVICE)
