"""The ways to do one and the same training step: ours, as the trainer runs it, and the peers. And whether they agree.

A step begins with the histories of a batch and ends with new weights. Ours is `tawin.rl.step.grpo_backward` and
`Stage.update`; the peers are `peers.grpo_step` around their forwards. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tawin_kernels import ItemTrie
from torch import Tensor, nn

from tawin.rl.groups import Groups
from tawin.rl.loss import completion_log_probs
from tawin.rl.rollout import roll_out
from tawin.rl.step import grpo_backward

from ..cases.ratios import SCORE_TOLERANCE, compare_beams
from ..peers import log_prob_head
from ..peers.grpo_step import PeerForward, PeerGroups, PeerStep
from ..peers.rere_step import rere_forward
from ..peers.shared_prefix_step import full_softmax_head, shared_prefix_forward
from .cases import StepCase

PEER_WAYS = ("shared_prefix", "shared_prefix_plain", "rere")
WAYS = ("ours", *PEER_WAYS)
GOALS = {"shared_prefix": 4.0, "shared_prefix_plain": 4.0, "rere": 20.0}  # how many times as fast ours shall be

# Of a score: a sum of up to 24 log-probs is rounded up to 24 times, by 6e-8 of itself at most.
SCORE_ROUNDING = 1.5e-6
# The loss is a mean of 256 advantages of up to 4, which cancel but for the KL: fp32's 6e-8 times a few.
LOSS_TOLERANCE = 2e-6
# Of a gradient's norm: a sum over up to some 30,000 tokens in another order, as in `cases`, and with TAWin's weights
# and KL the terms differ in size. What a completion weighs is a function of ranks, the same on both sides.
GRADIENT_TOLERANCE = 2e-5
# A parameter whose gradient is next to nothing (a bias of the keys) is held to this share of the whole one's norm.
LEAST_NORM = 1e-4


@dataclass(frozen=True)
class StepAnswer:
    """What a step computed, before its update."""

    token_ids: Tensor  # int64 [B, G, L], -100 = padding or missing
    scores: Tensor  # fp32 [B, G]
    rewards: Tensor  # fp32 [B, G]
    loss: float
    gradients: dict[str, Tensor]  # zeros where there is none

    @property
    def live_share(self) -> float:
        """Of the groups, those whose rewards differ."""
        return float((self.rewards.amax(1) > self.rewards.amin(1)).float().mean())


@dataclass(frozen=True)
class StepWay:
    """step: once, weights and all; answer: the same up to the gradients, which are taken off the parameters."""

    name: str
    step: Callable[[], None]
    answer: Callable[[], StepAnswer]


def way_of(name: str, case: StepCase) -> StepWay:
    """One of WAYS for a case; MissingPeer where it cannot run."""
    return _our_way(case) if name == "ours" else _peer_way(name, case, forward_of(name, case.device))


def forward_of(name: str, device: torch.device) -> PeerForward:
    """A peer's forward; MissingPeer where it cannot run."""
    if name == "rere":
        return rere_forward()
    return shared_prefix_forward(log_prob_head("trl", device) if name == "shared_prefix" else full_softmax_head)


def _our_way(case: StepCase) -> StepWay:
    def reference(groups: Groups) -> Tensor:
        assert case.reference is not None
        return completion_log_probs(case.reference, groups)

    def backward() -> float:
        given = None if case.reference is None else reference
        return grpo_backward(case.stage, case.catalog, case.chosen, case.config, given)["loss"]

    def step() -> None:
        backward()
        case.stage.update()

    def answer() -> StepAnswer:
        groups = rolled_out(case)
        return StepAnswer(groups.token_ids, groups.scores, groups.rewards, backward(), take_gradients(case.model))

    return StepWay("ours", step, answer)


def rolled_out(case: StepCase) -> Groups:
    """The groups of our step, which it keeps to itself."""
    input_ids, attention_mask = (tensor.to(case.device) for tensor in case.catalog.encode_histories(case.histories))
    targets = torch.as_tensor(case.chosen.targets, device=case.device)
    nothing_drawn = torch.Generator(case.device)
    with torch.no_grad(), case.stage.accelerator.autocast():
        return roll_out(case.model, case.catalog, input_ids, attention_mask, targets, case.config.grpo, nothing_drawn)


def _peer_way(name: str, case: StepCase, forward: PeerForward) -> StepWay:
    peer = PeerStep(
        model=case.model,
        reference=case.reference,
        forward=forward,
        table=case.table,
        config=case.config.grpo,
        optimizer=case.peer_optimizer,
        prompts_at_once=case.setting.at_once(name),
        autocast=case.stage.accelerator.autocast,
    )
    targets = case.target_tokens

    def backward() -> PeerGroups:
        input_ids, attention_mask = case.catalog.encode_histories(case.histories)
        return peer.backward(input_ids.to(case.device), attention_mask.to(case.device), targets)

    def step() -> None:
        backward()
        peer.update()

    def answer() -> StepAnswer:
        groups = backward()
        found = groups.sequences
        return StepAnswer(found.token_ids, found.scores, groups.rewards, groups.loss, take_gradients(case.model))

    return StepWay(name, step, answer)


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """By parameter, zeros where there is none; the parameters have none afterwards."""
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return gradients


def compare_steps(ours: StepAnswer, peer: StepAnswer, trie: ItemTrie) -> str:
    """AssertionError unless items, scores, rewards, loss and gradients agree; else how well they do."""
    lowest = float(ours.scores[ours.scores.isfinite()].abs().max())
    beams = compare_beams(
        leaves_of(trie, ours.token_ids),
        ours.scores,
        leaves_of(trie, peer.token_ids),
        peer.scores,
        max(SCORE_TOLERANCE, SCORE_ROUNDING * lowest),
    )
    assert torch.equal(ours.rewards, peer.rewards), "rewards differ"
    gap = abs(ours.loss - peer.loss)
    assert gap <= LOSS_TOLERANCE, f"loss differs: ours {ours.loss:.9g}, peer's {peer.loss:.9g}"
    whole = torch.stack([gradient.norm() for gradient in peer.gradients.values()]).norm()
    furthest = 0.0
    for name, expected in peer.gradients.items():
        norm = torch.maximum(expected.norm(), LEAST_NORM * whole)
        difference = (ours.gradients[name] - expected).norm()
        part = float(difference / norm) if norm > 0 else float(difference)
        assert part <= GRADIENT_TOLERANCE, f"{name}: gradients differ by {part:.2g} of their norm"
        furthest = max(furthest, part)
    return f"{beams}; loss within {gap:.1e}; gradients within {furthest:.1e} of their norm"


def leaves_of(trie: ItemTrie, token_ids: Tensor) -> Tensor:
    """The node that each completion ends at, int64 [B, G]; -1 = missing. token_ids int64 [B, G, L], -100 = padding."""
    node = torch.zeros_like(token_ids[..., 0])
    for tokens in token_ids.unbind(-1):
        node = torch.where(tokens >= 0, trie.child(node, tokens), node)
    return node.masked_fill(token_ids[..., 0] < 0, -1)


@contextmanager
def counted_tokens(case: StepCase) -> Iterator[dict[str, int]]:
    """Within it the tokens that go through policy and reference are counted, padding where a way runs it.

    Forwards that a CUDA graph replays are not seen: a shape is captured when it comes a second time.
    """
    counts = {"policy": 0, "reference": 0}

    def count_as(who: str) -> Callable[..., None]:
        def count(_embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[who] += inputs[0].numel()

        return count

    hooks = []
    models: dict[str, Any] = {"policy": case.model, "reference": case.reference}
    for who, model in models.items():
        if model is not None:
            hooks.append(model.get_input_embeddings().register_forward_pre_hook(count_as(who)))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
