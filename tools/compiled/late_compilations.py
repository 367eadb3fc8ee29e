"""Whether kernels are compiled again in the middle of a run, because a size that varies from step to step has changed.

Run: python -m tools.compiled.late_compilations

Triton compiles anew for an int that is 1 and for one that is a multiple of 16, unless the kernel says
`do_not_specialize`. Here each op meets the sizes of many steps, without a GPU; a kernel may have one compilation per
choice of its constants (block sizes, flags) and of the arguments that are None. Printed are the kernels, compilations
and choices; exit status 1 where a kernel has more compilations than choices.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import torch
from tawin_kernels import TAWin, beam_step, group_advantages, grpo_loss, linear_log_probs
from tawin_kernels.launch import INTERPRETED, Launch, Target, recorded_launches
from tawin_kernels.ops.log_prob.gradient import gradient_of_lists
from tawin_kernels.ops.log_prob.logsumexp import RowStatistics
from tawin_kernels.ops.log_prob.pair_lists import Pairs, list_pairs_on_device
from tawin_kernels.ops.log_prob.tiles import Head

from .cases import trie_without_memory
from .code import job_of

_TARGET = Target("cuda", "90")
# Live rows, pairs, prompts and tokens a completion of steps: 1, multiples of 16, and others; among the rows more than
# a slab takes at once.
_ROWS = (1, 5, 16, 40, 64, 100, 333, 1024, 2048, 4096, 4097, 9000)
_PROMPTS = (1, 3, 16, 17, 256)
_LENGTHS = (1, 3, 4, 16, 33)
_HIDDEN, _VOCABULARY, _GROUP = 896, 151_936, 16


def _empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _log_probs(rows: int, shared: bool) -> None:
    pairs = 2 * rows + 1 if shared else rows
    tokens = _empty(pairs, dtype=torch.int64)
    own_rows = _empty(pairs, dtype=torch.int64) if shared else None
    hidden, weight = _empty(rows, _HIDDEN, dtype=torch.bfloat16), _empty(_VOCABULARY, _HIDDEN, dtype=torch.bfloat16)
    linear_log_probs(hidden, weight, tokens, rows=own_rows)
    of_pairs, of_rows = _empty(pairs), _empty(rows)
    listed = Pairs(tokens, own_rows, of_pairs, of_pairs)
    for trained in (False, True):
        lists, _ = list_pairs_on_device(listed, rows, _VOCABULARY, by_token=trained)
        statistics = RowStatistics(of_rows, of_rows, None)
        gradient_of_lists(Head(hidden, weight, None, 1.0), listed, lists, statistics, (True, trained, False))


def _losses(prompts: int, length: int) -> None:
    rewards = _empty(prompts, _GROUP)
    advantages = group_advantages(rewards, rewards, tawin=TAWin())
    log_probs = _empty(prompts, _GROUP, length)
    grpo_loss(log_probs, _empty(prompts, _GROUP, length, dtype=torch.bool), advantages, old_log_probs=log_probs)


def _beams(prompts: int, normalizer: str) -> None:
    trie = trie_without_memory(1024, 256, _VOCABULARY - 1)
    weight = _empty(_VOCABULARY, _HIDDEN, dtype=torch.bfloat16)
    for beams in (1, _GROUP):
        hidden, nodes = _empty(prompts, beams, _HIDDEN, dtype=torch.bfloat16), _empty(prompts, beams, dtype=torch.int64)
        beam_step(hidden, weight, trie, nodes, _empty(prompts, beams), _GROUP, normalizer=normalizer)  # type: ignore[arg-type]


def steps() -> Iterator[Callable[[], None]]:
    for shared in (False, True):
        yield from (partial(_log_probs, rows, shared) for rows in _ROWS)
    yield from (partial(_losses, prompts, length) for prompts in _PROMPTS for length in _LENGTHS)
    for normalizer in ("vocab", "trie"):
        yield from (partial(_beams, prompts, normalizer) for prompts in _PROMPTS)


def _choice(launch: Launch) -> tuple[object, ...]:
    """What a launch chooses: constants, which arguments there are, their dtypes, warps and stages."""
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    chosen: list[object] = [launch.num_warps, launch.num_stages]
    for name, value in sorted(launch.arguments.items()):
        if name in constants or value is None:
            chosen.append((name, value))
        elif isinstance(value, torch.Tensor):
            chosen.append((name, value.dtype))
    return tuple(chosen)


def compilations() -> dict[str, tuple[int, int]]:
    """Of each kernel: how often it is compiled, and how many choices there are."""
    keys, choices = defaultdict(set), defaultdict(set)
    for step in steps():
        with recorded_launches(_TARGET) as launches:
            step()
        for launch in launches:
            name = launch.kernel.__name__
            keys[name].add(job_of(launch, _TARGET).key)
            choices[name].add(_choice(launch))
    return {name: (len(keys[name]), len(choices[name])) for name in sorted(keys)}


def main() -> int:
    """The exit status: 0 no kernel is compiled late, 1 some are, 2 there is nothing to compile."""
    if INTERPRETED:
        print("TRITON_INTERPRET is set: kernels were made for the interpreter, there is nothing to compile. Unset it.")
        return 2
    late = False
    for name, (compiled, chosen) in compilations().items():
        late |= compiled > chosen
        print(f"{name:<28}{compiled:>4} compilations, {chosen:>3} choices{'  LATE' if compiled > chosen else ''}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
