"""Which ops at which shapes are compiled ahead of time: the launches that a GPU would see, without one.

Every case calls ops inside `tawin_kernels.launch.recorded_launches`, where nothing runs: on tensors of the "meta"
device, which have no memory, or, where an op counts something on the host before it launches, on small CPU tensors.
Shapes are picked so that every choice of block sizes and every optional argument occurs. Knows nothing of compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, get_args

import torch
from tawin_kernels import (
    ItemTrie,
    TAWin,
    beam_step,
    group_advantages,
    grpo_loss,
    linear_log_probs,
    tawin_weights,
)
from tawin_kernels.ops.advantage.kernels import GroupRewards
from tawin_kernels.ops.log_prob.gradient import gradient_of_lists
from tawin_kernels.ops.log_prob.logsumexp import RowStatistics
from tawin_kernels.ops.log_prob.one_pass import one_pass_of_lists, pair_logits
from tawin_kernels.ops.log_prob.pair_lists import Pairs, list_pairs_on_device
from tawin_kernels.ops.log_prob.tiles import Head
from tawin_kernels.ops.loss.kernels import LossOptions, triton_grpo_loss
from tawin_kernels.ops.loss.types import LossType
from tawin_kernels.types import RankTransform

META = torch.device("meta")
VOCABULARY = 151_936


@dataclass(frozen=True)
class Case:
    """`run` is to be called inside a recording."""

    label: str
    run: Callable[[], None]


def compile_cases() -> Iterator[Case]:
    """All of them."""
    for dtype in _LOG_PROB_SHAPES:
        yield from _log_prob_cases(dtype)
    yield from _advantage_cases()
    yield from _loss_cases()
    yield from _beam_cases()


def gpu_cases() -> Iterator[Case]:
    """What checks and benchmarks on a GPU launch beside: each dtype at every size, a step's rows."""
    for dtype in _LOG_PROB_SHAPES:
        for rows in (64, 1024, 4096):
            shape = f"{_name(dtype)}, {rows:,} rows, H 896"
            yield Case(f"log-probs, {shape}", partial(_log_probs, rows, 896, VOCABULARY, dtype))
            for shared in (False, True):
                gradient = partial(_log_probs_gradient, rows, 896, VOCABULARY, dtype, bias=shared, shared=shared)
                yield Case(f"log-probs' gradient, {shape}, {'shared' if shared else 'own'} rows", gradient)
            yield Case(f"log-probs and gradient in one pass, {shape}", partial(_one_pass, rows, 896, VOCABULARY, dtype))
        yield Case(f"log-probs, {_name(dtype)}, rows, entropy", partial(_log_probs_of_shared_rows, dtype))
        for normalizer in ("vocab", "trie"):
            for prompts in (64, 256):
                for beams in (1, 16):
                    step = _Beams(prompts, beams, 16, normalizer, dtype=dtype)
                    yield Case(f"beam step, {step}", partial(_beam_step, step))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device=META)


# (rows, H, V): few, some and many rows are three choices of block sizes; so many rows that a span of the vocabulary
# holds several tiles; and an H that is no multiple of any block. What bf16 shows fp16 need not show again.
_LOG_PROB_SHAPES = {
    torch.bfloat16: (
        (16, 2048, VOCABULARY),
        (64, 1536, VOCABULARY),
        (1024, 896, 5000),
        (16_384, 2048, VOCABULARY),
        (1024, 1000, 5000),
    ),
    torch.float16: ((16, 896, VOCABULARY), (1024, 2048, VOCABULARY)),
    torch.float32: ((16, 896, VOCABULARY), (16_384, 2048, VOCABULARY), (1024, 1000, 5000)),
}


def _log_prob_cases(dtype: torch.dtype) -> Iterator[Case]:
    for rows, H, V in _LOG_PROB_SHAPES[dtype]:
        shape = f"{_name(dtype)}, {rows:,} rows, H {H:,}, V {V:,}"
        yield Case(f"log-probs, {shape}", partial(_log_probs, rows, H, V, dtype))
        yield Case(f"log-probs' gradient, {shape}", partial(_log_probs_gradient, rows, H, V, dtype))
        yield Case(f"log-probs and gradient in one pass, {shape}", partial(_one_pass, rows, H, V, dtype))
    if dtype == torch.float16:
        return
    shape = f"{_name(dtype)}, 1,024 rows, H 896, V {VOCABULARY:,}, bias"
    yield Case(f"log-probs, {shape}, rows, entropy", partial(_log_probs_of_shared_rows, dtype))
    yield Case(
        f"log-probs' gradient, {shape}",
        partial(_log_probs_gradient, 1024, 896, VOCABULARY, dtype, bias=True, shared=True),
    )
    shape = f"{_name(dtype)}, 1,024 rows, H 896, V 1,000, two bytes off"
    yield Case(f"log-probs, {shape}", partial(_log_probs_of_unaligned_states, dtype))
    for pairs in (16, 256):
        shape = f"{_name(dtype)}, {pairs} pairs, H 896"
        yield Case(f"log-probs over children, {shape}", partial(_child_log_probs, pairs, dtype))
    yield Case(f"log-probs over children, {shape}, bias, rows, entropy", partial(_child_log_probs, 256, dtype, True))


def _log_probs(rows: int, H: int, V: int, dtype: torch.dtype) -> None:
    tokens = _empty(rows, dtype=torch.int64)
    linear_log_probs(_empty(rows, H, dtype=dtype), _empty(V, H, dtype=dtype), tokens)


def _log_probs_of_unaligned_states(dtype: torch.dtype) -> None:
    """On the CPU: tensors without memory have no address."""
    hidden = torch.empty(1024 * 896 + 1, dtype=dtype)[1:].view(1024, 896)
    linear_log_probs(hidden, torch.empty(1000, 896, dtype=dtype), torch.zeros(1024, dtype=torch.int64))


def _log_probs_of_shared_rows(dtype: torch.dtype) -> None:
    linear_log_probs(
        _empty(1024, 896, dtype=dtype),
        _empty(VOCABULARY, 896, dtype=dtype),
        _empty(64, 16, 4, dtype=torch.int64),
        bias=_empty(VOCABULARY, dtype=dtype),
        rows=_empty(64, 16, 4, dtype=torch.int64),
        with_entropy=True,
    )


def _log_probs_gradient(
    rows: int, H: int, V: int, dtype: torch.dtype, *, bias: bool = False, shared: bool = False
) -> None:
    """The launches of the backward pass, which reads on the host how many rows there are: here, all that can be."""
    head = Head(
        hidden=_empty(rows, H, dtype=dtype),
        weight=_empty(V, H, dtype=dtype),
        bias=_empty(V, dtype=dtype) if bias else None,
        temperature=1.0,
    )
    tokens, of_pairs = _empty(rows, dtype=torch.int64), _empty(rows, dtype=torch.float32)
    pairs = Pairs(tokens, _empty(rows, dtype=torch.int64) if shared else None, of_pairs, of_pairs)
    for trained in (False, True):
        lists, _ = list_pairs_on_device(pairs, rows, V, by_token=trained)
        some = lists._replace(dense=lists.dense[: rows - 1])  # a row whose coefficients cancel
        gradient_of_lists(head, pairs, some, RowStatistics(of_pairs, of_pairs, None), (True, trained, trained and bias))


def _one_pass(rows: int, H: int, V: int, dtype: torch.dtype) -> None:
    """The launches of the pass after it has read how many rows there are: here, all that can be."""
    tokens, of_pairs = _empty(rows, dtype=torch.int64), _empty(rows, dtype=torch.float32)
    head = Head(_empty(rows, H, dtype=dtype), _empty(V, H, dtype=dtype), None, 1.0)
    pairs = Pairs(tokens, tokens, pair_logits(head, tokens, tokens), of_pairs)
    lists, _ = list_pairs_on_device(pairs, rows, V, by_token=False, all_pairs=True)
    one_pass_of_lists(head, pairs, lists)


def _child_log_probs(pairs: int, dtype: torch.dtype, with_all: bool = False) -> None:
    """Forward and backward, on the CPU: the pairs are counted on the host."""
    trie = _small_trie()
    hidden = torch.zeros(pairs, 896, dtype=dtype, requires_grad=True)
    log_probs = linear_log_probs(
        hidden,
        torch.zeros(1024, 896, dtype=dtype),
        torch.zeros(pairs, dtype=torch.int64),
        bias=torch.zeros(1024, dtype=dtype) if with_all else None,
        rows=torch.arange(pairs) if with_all else None,
        normalizer="trie",
        trie=trie,
        nodes=torch.zeros(pairs, dtype=torch.int64),
        with_entropy=with_all,
    )
    if isinstance(log_probs, tuple):
        log_probs = log_probs[0]
    log_probs.sum().backward()


@lru_cache(maxsize=1)
def _small_trie() -> ItemTrie:
    """1,024 tokens in use, as of four levels of 256 codes; of one level, so that the trie is small."""
    return ItemTrie.from_sequences(torch.arange(1024)[:, None])


def _advantage_cases() -> Iterator[Case]:
    for group_size in (16, 512):
        for transform in get_args(RankTransform):
            shape = f"64 groups of {group_size}, {transform}"
            yield Case(f"advantages, {shape}", partial(_advantages, group_size, TAWin(rank_transform=transform)))
        yield Case(f"advantages, 64 groups of {group_size}, no window", partial(_advantages, group_size, None))


def _advantages(group_size: int, tawin: TAWin | None) -> None:
    rewards, scores = (_empty(64, group_size, dtype=torch.float32) for _ in range(2))
    valid = _empty(64, group_size, dtype=torch.bool)
    group_advantages(rewards, scores, tawin=tawin, valid=valid)
    if tawin is not None:
        tawin_weights(scores, valid, tawin)
    else:
        group_advantages(rewards, normalize_std=False)


def _loss_cases() -> Iterator[Case]:
    for loss_type in get_args(LossType):
        options = {"loss_type": loss_type, "epsilon_high": 5.0 if loss_type == "cispo" else 0.2}
        yield Case(f"group loss, {loss_type}, 64 groups of 16, 4 tokens", partial(_loss, 4, torch.float32, **options))
    yield Case("group loss, grpo, 64 groups of 16, 40 tokens", partial(_loss, 40, torch.float32))
    shape = "64 groups of 16, 4 tokens"
    yield Case(
        f"group loss, grpo, ratios of sequences, {shape}", partial(_loss, 4, torch.float32, importance_level="sequence")
    )
    yield Case(f"group loss, grpo, KL, all given, {shape}", partial(_loss, 4, torch.float32, beta=0.04))
    yield Case("group loss, grpo, bfloat16, 2 groups of 16, 2,000 tokens", partial(_loss, 2000, torch.bfloat16, B=2))
    for group_size, transform in ((16, "identity"), (16, "fraction"), (64, "log2"), (512, "identity")):
        shape = f"64 groups of {group_size}, {transform}, 40 tokens"
        yield Case(f"group loss with its advantages, {shape}", partial(_loss_of_rewards, group_size, transform))


def _loss(L: int, dtype: torch.dtype, *, B: int = 64, **options: Any) -> None:
    G = 16
    log_probs = _empty(B, G, L, dtype=dtype).requires_grad_()
    rest: dict[str, torch.Tensor] = {"old_log_probs": _empty(B, G, L, dtype=torch.float32)}
    if "beta" in options:
        rest |= {
            "ref_log_probs": _empty(B, G, L, dtype=torch.float32),
            "valid": _empty(B, G, dtype=torch.bool),
            "denominator": _empty(dtype=torch.float32),
        }
    grpo_loss(
        log_probs, _empty(B, G, L, dtype=torch.bool), _empty(B, G, dtype=torch.float32), **rest, **options
    ).loss.backward()


def _loss_of_rewards(G: int, transform: RankTransform) -> None:
    B, L = 64, 40
    groups = GroupRewards(
        _empty(B, G, dtype=torch.float32),
        _empty(B, G, dtype=torch.float32),
        TAWin(rank_transform=transform),
        True,
        1e-4,
    )
    triton_grpo_loss(
        _empty(B, G, L, dtype=torch.float32).requires_grad_(),
        _empty(B, G, L, dtype=torch.bool),
        groups,
        _empty(B, G, dtype=torch.bool),
        None,
        _empty(B, G, L, dtype=torch.float32),
        None,
        LossOptions("grpo", "token", 0.2, 0.2, 0.04),
    )


@dataclass(frozen=True)
class _Beams:
    """One beam step; the defaults are semantic ids of 4 x 256 codes."""

    prompts: int
    beams: int
    beam_width: int
    normalizer: str
    dtype: torch.dtype = torch.bfloat16
    hidden_size: int = 896
    vocabulary: int = VOCABULARY
    tokens: int = 1024
    children: int = 256
    bias: bool = False

    def __str__(self) -> str:
        return (
            f"{self.normalizer}, {_name(self.dtype)}, {self.prompts} prompts, {self.beams} beams to {self.beam_width}, "
            f"H {self.hidden_size:,}, V {self.vocabulary:,}, {self.tokens:,} tokens, {self.children:,} children"
            f"{', bias' if self.bias else ''}"
        )


_BEAM_STEPS = (
    _Beams(1, 4, 4, "vocab"),
    _Beams(1, 16, 16, "trie"),
    _Beams(256, 16, 16, "vocab"),
    _Beams(256, 16, 16, "trie"),
    _Beams(256, 512, 512, "vocab"),
    _Beams(16, 1, 16, "vocab"),  # the root, with no more children than elsewhere
    _Beams(256, 50, 50, "trie", hidden_size=2048, vocabulary=5000),
    _Beams(256, 16, 16, "trie", dtype=torch.float16, bias=True),
    _Beams(1, 16, 16, "trie", dtype=torch.float32, bias=True),
    _Beams(256, 16, 16, "vocab", dtype=torch.float32, vocabulary=5000),
    # The root of a wide catalogue, and of titles whose first tokens are most of the vocabulary.
    _Beams(16, 1, 16, "trie", tokens=65_536, children=65_536),
    *(
        _Beams(64, 16, 512, "trie", tokens=65_536, children=65_536, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    ),
    _Beams(64, 512, 512, "vocab", tokens=100_000, children=3000, bias=True),
)


def _beam_cases() -> Iterator[Case]:
    for step in _BEAM_STEPS:
        yield Case(f"beam step, {step}", partial(_beam_step, step))


def _beam_step(step: _Beams) -> None:
    beam_step(
        _empty(step.prompts, step.beams, step.hidden_size, dtype=step.dtype),
        _empty(step.vocabulary, step.hidden_size, dtype=step.dtype),
        trie_without_memory(step.tokens, step.children, step.vocabulary - 1),
        _empty(step.prompts, step.beams, dtype=torch.int64),
        _empty(step.prompts, step.beams, dtype=torch.float32),
        step.beam_width,
        normalizer=step.normalizer,  # type: ignore[arg-type]
        bias=_empty(step.vocabulary, dtype=step.dtype) if step.bias else None,
    )


def trie_without_memory(tokens: int, children: int, max_token: int) -> ItemTrie:
    """A catalogue of a million items, as far as a launch needs one: sizes."""
    nodes, items = 2_000_000, 1_000_000

    def ints(size: int) -> torch.Tensor:
        return _empty(size, dtype=torch.int32)

    trie = ItemTrie(
        child_offsets=ints(nodes + 1),
        edge_tokens=ints(nodes - 1),
        item_offsets=ints(nodes + 1),
        item_ids=ints(items),
        level_offsets=(0, 1, children + 1, nodes - items, nodes),
        leaf_depths=(3,),
        max_children=children,
        max_token=max_token,
    )
    # What the trie makes on first use from the values of its arrays, which are not there.
    vars(trie).update(used_tokens=ints(tokens), token_slots=ints(max_token + 1))
    return trie
