"""Shapes and inputs of the LM head's log-probs and of the group loss: what is live, what is shared, the least work.

Completions have four tokens, sixteen a group. Where prefixes are shared they are those of a beam search over a drawn
trie that narrows as one of semantic ids does, else every token has a state of its own. A live group has one hit, a dead
one none. Nothing here reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tawin_kernels import TAWin, group_advantages, reference
from torch import Tensor

from .floors import floor_seconds

CHILDREN = (48, 48, 4, 2)  # of every node, depth by depth: 18,432 sequences
GROUP_SIZE = 16
LENGTH = len(CHILDREN)
EXACT_TOKENS = 4096  # whose log-probs are computed in fp64 to hold the others' against

# What bf16 costs: logits of up to 16 are rounded by up to 1/32 by every way that leaves them to the matrix library, and
# a log-prob is the difference of one of them and a mean of many. fp32: sums of a few hundred products in another order.
LOG_PROB_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
# Of a gradient's norm. In bf16, rounded logits cost some 3e-3, and Cut Cross-Entropy leaves small gradients out. Some
# peers sum up a trained head's in bf16: 4,096 pieces, each sum off by some 1e-3, end up off by 1e-3 * sqrt(4,096 / 2).
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
HEAD_GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class LossShape:
    """One call. The defaults are the first point from which the axes are swept: all live, all distinct."""

    tokens: int = 16_384
    hidden_size: int = 896
    vocabulary: int = 151_936
    live: float = 1.0  # share of the groups that have a gradient
    is_shared: bool = False  # completions share the states of common prefixes
    is_head_trained: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def groups(self) -> int:
        return self.tokens // (GROUP_SIZE * LENGTH)

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens, {'shared prefixes' if self.is_shared else 'all distinct'}, {self.live:.0%} live, "
            f"hidden {self.hidden_size}, vocabulary {self.vocabulary:,}, "
            f"head {'trained' if self.is_head_trained else 'frozen'}, {str(self.dtype).removeprefix('torch.')}"
        )


_DISTINCT = LossShape()
_STEP = LossShape(tokens=4096, live=0.15, is_shared=True)  # a recommender's step
_SMALL = LossShape(tokens=256, hidden_size=128, vocabulary=5000, dtype=torch.float32)

GPU_SHAPES = {
    "distinct": _DISTINCT,
    "distinct, 1,024 tokens": replace(_DISTINCT, tokens=1024),
    "distinct, 4,096 tokens": replace(_DISTINCT, tokens=4096),
    "distinct, 65,536 tokens": replace(_DISTINCT, tokens=65_536),
    "distinct, hidden 2048": replace(_DISTINCT, hidden_size=2048),
    "distinct, hidden 4096": replace(_DISTINCT, hidden_size=4096),
    "distinct, 5,000 words": replace(_DISTINCT, vocabulary=5000),
    "distinct, half live": replace(_DISTINCT, live=0.5),
    "distinct, 15 % live": replace(_DISTINCT, live=0.15),
    "distinct, head trained": replace(_DISTINCT, is_head_trained=True),
    "distinct, hidden 4096, head trained": replace(_DISTINCT, hidden_size=4096, is_head_trained=True),
    "step": _STEP,
    "step, 1,024 tokens": replace(_STEP, tokens=1024),
    "step, 16,384 tokens": replace(_STEP, tokens=16_384),
    "step, 65,536 tokens": replace(_STEP, tokens=65_536),
    "step, hidden 2048": replace(_STEP, hidden_size=2048),
    "step, hidden 4096": replace(_STEP, hidden_size=4096),
    "step, 5,000 words": replace(_STEP, vocabulary=5000),
    "step, half live": replace(_STEP, live=0.5),
    "step, all live": replace(_STEP, live=1.0),
    "step, nothing shared": replace(_STEP, is_shared=False),
    "step, head trained": replace(_STEP, is_head_trained=True),
}
CPU_SHAPES = {
    "small": _SMALL,
    "small, head trained": replace(_SMALL, is_head_trained=True),
    "small step": replace(_SMALL, tokens=1024, live=0.15, is_shared=True),
}


@dataclass(frozen=True)
class LossInputs:
    """The same work in both forms: `repeated_hidden` is `hidden[rows]`. Both, and the head, are leaves."""

    hidden: Tensor  # [R, H], a state for each distinct prefix
    repeated_hidden: Tensor  # [B, G, L, H], what a decoder that shares nothing hands over
    lm_head_weight: Tensor  # [V, H]
    rows: Tensor  # int64 [B, G, L]
    token_ids: Tensor  # int64 [B, G, L]
    mask: Tensor  # bool [B, G, L], all True
    rewards: Tensor  # fp32 [B, G], 0 or 1
    scores: Tensor  # fp32 [B, G], descending: beams, best first

    @property
    def advantages(self) -> Tensor:
        """fp32 [B, G], what peers are given; 0 in dead groups."""
        return group_advantages(self.rewards, self.scores, tawin=TAWin())

    def clear_gradients(self) -> None:
        for leaf in (self.hidden, self.repeated_hidden, self.lm_head_weight):
            leaf.grad = None


@dataclass(frozen=True)
class Work:
    """What one forward and backward cannot do without: FLOPs of the matrix products, bytes that move once."""

    forward_rows: int
    backward_rows: int
    flops: int
    bytes: int

    @property
    def floor_seconds(self) -> float:
        """On the H200 of `floors`."""
        return floor_seconds(self.bytes, self.flops)


def draw_beams(groups: int, *, spread: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Beam searches over a trie of CHILDREN: codes int64 [groups, G, L], from 0 at each depth, and scores [groups, G].

    Every node's children have log-probs log_softmax(spread * N(0, 1)). 64 groups have 31 distinct prefixes a group on
    average, the empty one included, where 64 tokens are predicted.
    """
    draw = torch.Generator().manual_seed(seed)
    scores = torch.zeros(groups, 1)
    codes = torch.zeros(groups, 1, 0, dtype=torch.int64)
    for depth, children in enumerate(CHILDREN):
        noise = torch.randn(groups, scores.shape[1], children, generator=draw)
        candidates = (scores[..., None] + (spread * noise).log_softmax(-1)).flatten(1)  # [groups, beams * children]
        scores, place = candidates.topk(GROUP_SIZE)
        parents = (place // children)[..., None].expand(-1, -1, depth)
        codes = torch.cat((codes.gather(1, parents), (place % children)[..., None]), dim=-1)
    return codes, scores


def shared_rows(token_ids: Tensor) -> Tensor:
    """int64 [B, G, L]: one row for each distinct prefix of a group, numbered depth by depth."""
    B, G, L = token_ids.shape
    prefixes = torch.arange(B, device=token_ids.device)[:, None].expand(B, G)
    columns: list[Tensor] = []
    numbered = 0
    for depth in range(L):
        distinct, number = prefixes.unique(return_inverse=True)
        columns.append(numbered + number)
        numbered += len(distinct)
        prefixes = number * (int(token_ids.max()) + 1) + token_ids[..., depth]
    return torch.stack(columns, dim=-1)


def make_inputs(shape: LossShape, device: torch.device | str = "cpu", *, seed: int = 0) -> LossInputs:
    """Random states, and logits of about N(0, 9): some tokens likely, most not, the largest logits around 15."""
    B = shape.groups
    draw = torch.Generator().manual_seed(seed)
    codes, scores = draw_beams(B, seed=seed)
    # Each level has tokens of its own, the last of the vocabulary, as added semantic ids have.
    token_ids = shape.vocabulary - sum(CHILDREN) + torch.tensor((0, *CHILDREN[:-1])).cumsum(0) + codes
    rows = shared_rows(token_ids) if shape.is_shared else torch.arange(token_ids.numel()).view(token_ids.shape)
    is_live = torch.zeros(B, dtype=torch.bool)
    is_live[torch.randperm(B, generator=draw)[: max(1, round(shape.live * B))]] = True
    hits = torch.randint(GROUP_SIZE, (B, 1), generator=draw)
    rewards = ((torch.arange(GROUP_SIZE) == hits) & is_live[:, None]).float()

    on_device = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=on_device, device=device, dtype=shape.dtype) * scale

    hidden = normal(int(rows.max()) + 1, shape.hidden_size)  # [R, H]
    rows = rows.to(device)
    return LossInputs(
        hidden=hidden.requires_grad_(),
        repeated_hidden=hidden.detach()[rows].requires_grad_(),
        lm_head_weight=normal(shape.vocabulary, shape.hidden_size, scale=3 * shape.hidden_size**-0.5).requires_grad_(
            shape.is_head_trained
        ),
        rows=rows,
        token_ids=token_ids.to(device),
        mask=torch.ones_like(token_ids, dtype=torch.bool, device=device),
        rewards=rewards.to(device),
        scores=scores.to(device),
    )


def work_of(shape: LossShape, inputs: LossInputs, *, skips_dead: bool) -> Work:
    """The work of the live, distinct rows.

    Forward 2 R V H; backward the logits again and the gradient of the states, 2 R V H each, and as much for a trained
    head. skips_dead: the forward leaves dead groups out too; a loss can, log-probs that are asked for cannot.
    The head is read once forward and once backward, its gradient written once.
    """
    backward_rows = len(inputs.rows[(inputs.advantages != 0).any(-1)].unique())
    forward_rows = backward_rows if skips_dead else len(inputs.hidden)
    products = forward_rows + (3 if shape.is_head_trained else 2) * backward_rows
    head_passes = 3 if shape.is_head_trained else 2
    state_rows = forward_rows + backward_rows + len(inputs.hidden)  # the gradient of the states is written whole
    return Work(
        forward_rows=forward_rows,
        backward_rows=backward_rows,
        flops=2 * products * shape.vocabulary * shape.hidden_size,
        bytes=(head_passes * shape.vocabulary + state_rows) * shape.hidden_size * shape.dtype.itemsize,
    )


@torch.no_grad()
def log_prob_error(log_probs: Tensor, inputs: LossInputs, *, live_only: bool = False) -> float:
    """The largest distance from the log-probs in fp64 of the same values, over EXACT_TOKENS tokens evenly spread.

    live_only: only tokens with a gradient count; `tawin_grpo_loss` gives 0 for the others.
    """
    tokens = inputs.token_ids.flatten()
    is_counted = (inputs.advantages != 0)[..., None].expand_as(inputs.mask) if live_only else inputs.mask
    counted = is_counted.flatten().nonzero().squeeze(1)
    chosen = counted[:: max(1, len(counted) // EXACT_TOKENS)]
    hidden = inputs.hidden[inputs.rows.flatten()[chosen]].double()
    exact = reference.linear_log_probs(hidden, inputs.lm_head_weight.double(), tokens[chosen])
    return (log_probs.flatten()[chosen].double() - exact).abs().max().item()


@dataclass(frozen=True)
class Answer:
    """What a way gave: log-probs or a loss, and the gradients, those of repeated states summed up for each row."""

    value: Tensor
    hidden_gradient: Tensor  # fp32 [R, H]
    head_gradient: Tensor | None  # [V, H]


def answer_of(value: Tensor, inputs: LossInputs) -> Answer:
    """The value and the gradients that stand at the inputs' leaves, which are cleared."""
    gradient = inputs.hidden.grad
    if gradient is None:
        repeated = inputs.repeated_hidden.grad
        assert repeated is not None, "no gradient has reached the states"
        gradient = torch.zeros_like(inputs.hidden, dtype=torch.float32)
        gradient.index_add_(0, inputs.rows.flatten(), repeated.flatten(0, -2).float())
    answer = Answer(value.detach(), gradient.float(), inputs.lm_head_weight.grad)
    inputs.clear_gradients()
    return answer


def compare_answers(ours: Answer, theirs: Answer, dtype: torch.dtype) -> str:
    """AssertionError unless values and gradients agree within the tolerances of the dtype; else how well they do."""
    gap = (ours.value - theirs.value).abs().max().item()
    assert gap <= LOG_PROB_TOLERANCE[dtype], f"values differ by {gap:.2g}, allowed {LOG_PROB_TOLERANCE[dtype]:g}"
    told = f"values within {gap:.1e}"
    for name, tolerance in (("hidden", GRADIENT_TOLERANCE[dtype]), ("head", HEAD_GRADIENT_TOLERANCE[dtype])):
        mine, other = getattr(ours, f"{name}_gradient"), getattr(theirs, f"{name}_gradient")
        assert (mine is None) == (other is None), f"only one way has a gradient of the {name}"
        if mine is not None:
            gap = ((mine.float() - other.float()).norm() / other.float().norm()).item()
            assert gap <= tolerance, f"gradients of the {name} differ by {gap:.2g} of their norm, allowed {tolerance:g}"
            told += f", gradient of the {name} within {gap:.1e} of its norm"
    return told
