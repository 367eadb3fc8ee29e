"""Every op's kernels against the reference op in fp64 on the same inputs, and twice: the same bits both times.

Run: python -m tools.gpu.kernel_checks [--device cuda|cpu] [--size large|tiny] [--seed N] [--compiled sm_90]

Prints a line of JSON a check: its name, what was compared with the error found and the error allowed, and whether all
is well. Exit status 1 if any check failed. Tests look at edge cases on tiny shapes; this looks at shapes of real work,
where accumulation, tiling and addressing go wrong. On the CPU (tiny shapes) it runs through Triton's interpreter and
needs TRITON_INTERPRET=1, or as compiled for a GPU, with --compiled. A line more for each kernel that is compiled.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from tawin_kernels import (
    TAWin,
    beam_step,
    group_advantages,
    grpo_loss,
    linear_log_probs,
    reference,
    tawin_grpo_loss,
    tawin_weights,
)
from tawin_kernels.launch import INTERPRETED
from tawin_kernels.ops.loss.types import LossType
from tawin_kernels.types import RankTransform
from torch import Tensor

from bench.cases.beam import StepShape, catalogue, compare_steps, make_inputs

from ..ptx_machine.compile import TARGETS
from ..ptx_machine.switch import switch_on
from .session import tell_compilations

# Log-probs are sums in fp32 of exact products: about sqrt(H) roundings of logits below 16, plus those of tensor cores,
# which cut off where they should round.
LOG_PROB_TOLERANCE = 1e-4
# Of gradients, as parts of the largest: fp32 sums; or operands of the backward products stored in the dtype, by half a
# unit in the last place each, and the result once more.
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Advantages and losses are fp32 results of a few operations, of order one.
SMALL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Size:
    """How large the checks are."""

    groups: int
    group_size: int
    length: int
    hidden_size: int
    vocabulary: int
    beams: StepShape


SIZES = {
    "large": Size(64, 16, 4, 896, 151_936, StepShape(prompts=64, items=100_000)),
    "tiny": Size(2, 4, 2, 48, 70, StepShape(prompts=2, beams=3, beam_width=4, items=40, hidden_size=48, text_tokens=8)),
}


@dataclass(frozen=True)
class Compared:
    """One quantity: the largest error found, and allowed; of a gradient as a part of its largest element."""

    what: str
    error: float
    allowed: float

    @property
    def is_good(self) -> bool:
        return self.error <= self.allowed  # NaN is not


Check = Callable[[], list[Compared]]


def distance(what: str, ours: Tensor, exact: Tensor, allowed: float, *, relative: bool = False) -> Compared:
    """In fp64. relative: to the largest element of `exact`."""
    error = (ours.detach().double() - exact.detach().double()).abs().max()
    largest = exact.detach().double().abs().max() if relative else torch.ones(())
    return Compared(what, (error.cpu() / largest.cpu().clamp(min=1e-30)).item(), allowed)


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> Compared:
    """The number of tensors that differ between two runs."""
    differing = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return Compared("results that differ between two runs", float(differing), 0.0)


def checks(size: Size, device: torch.device, dtypes: Sequence[torch.dtype], seed: int) -> Iterator[tuple[str, Check]]:
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for options in ("", "bias, rows, temperature"):
            about = f"linear_log_probs, {name}{', ' if options else ''}{options}"
            yield about, partial(_check_log_probs, size, device, dtype, seed, with_options=bool(options))
        for normalizer in ("vocab", "trie"):
            shape = replace(size.beams, dtype=dtype, normalizer=normalizer)
            for depth in (0, 1):
                step = replace(shape, depth=depth, beams=shape.beams if depth else 1)
                yield f"beam_step, {step}", partial(_check_beam_step, step, device, seed)
        yield f"tawin_grpo_loss, {name}", partial(_check_tawin_grpo_loss, size, device, dtype, seed)
    for group_size in sorted({size.group_size, 512 if size.group_size > 4 else 7}):
        for transform in get_args(RankTransform):
            tawin = TAWin(anchor=2.0, window=1.5, temperature=0.5, rank_transform=transform)
            about = f"advantages of groups of {group_size}, {transform}"
            yield about, partial(_check_advantages, size.groups, group_size, tawin, device, seed)
    for loss_type in get_args(LossType):
        yield f"grpo_loss, {loss_type}", partial(_check_grpo_loss, size, device, loss_type, seed)


def _drawing(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _head_inputs(size: Size, device: torch.device, dtype: torch.dtype, draw: torch.Generator) -> dict[str, Tensor]:
    """Logits of about N(0, 1)."""
    H, V = size.hidden_size, size.vocabulary

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=draw, device=device) * scale).to(dtype)

    shape = (size.groups, size.group_size, size.length)
    return {
        "hidden": normal(*shape, H),
        "lm_head_weight": normal(V, H, scale=H**-0.5),
        "token_ids": torch.randint(V, shape, generator=draw, device=device),
        "bias": normal(V),
    }


def _leaves(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]


def _check_log_probs(
    size: Size, device: torch.device, dtype: torch.dtype, seed: int, *, with_options: bool
) -> list[Compared]:
    draw = _drawing(device, seed)
    inputs = _head_inputs(size, device, dtype, draw)
    tokens = inputs["token_ids"].flatten()  # [N]
    hidden = inputs["hidden"].flatten(0, 2)  # [N, H]
    ignored = torch.rand(len(tokens), generator=draw, device=device) < 0.1
    tokens = tokens.masked_fill(ignored, -100)
    options: dict[str, Any] = {"with_entropy": True}
    differentiable = [hidden, inputs["lm_head_weight"]]
    if with_options:
        options |= {"rows": torch.randint(len(hidden), tokens.shape, generator=draw, device=device), "temperature": 0.7}
        differentiable.append(inputs["bias"])
    else:
        hidden[ignored] = torch.nan  # is not to be read
    gradient = torch.randn(tokens.shape, generator=draw, device=device)

    def run(op: Callable[..., Any], leaves: list[Tensor], impl: str) -> list[Tensor]:
        bias = {"bias": leaves[2]} if with_options else {}
        log_probs, entropy = op(leaves[0], leaves[1], tokens, **bias, **options, impl=impl)
        log_probs.backward(gradient.to(log_probs.dtype))
        return [log_probs, entropy, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    ours = run(linear_log_probs, _leaves(differentiable), "triton")
    again = run(linear_log_probs, _leaves(differentiable), "triton")
    exact = run(reference.linear_log_probs, _leaves(differentiable, torch.float64), "reference")
    return [
        distance("log-probs", ours[0], exact[0], LOG_PROB_TOLERANCE),
        distance("entropy", ours[1], exact[1], LOG_PROB_TOLERANCE),
        *(
            distance(f"gradient of {what}", mine, theirs, GRADIENT_TOLERANCE[dtype], relative=True)
            for what, mine, theirs in zip(("hidden", "weight", "bias"), ours[2:], exact[2:], strict=False)
        ),
        same_bits(ours, again),
    ]


def _check_beam_step(shape: StepShape, device: torch.device, seed: int) -> list[Compared]:
    trie = catalogue(shape.items, shape.text_tokens).to(device)
    inputs = make_inputs(shape, trie, seed=seed)

    def run(op: Callable[..., Any], dtype: torch.dtype, impl: str) -> Any:
        return op(
            inputs.hidden.to(dtype),
            inputs.lm_head_weight.to(dtype),
            trie,
            inputs.nodes,
            inputs.scores,
            shape.beam_width,
            normalizer=shape.normalizer,
            impl=impl,
        )

    ours = run(beam_step, shape.dtype, "triton")
    exact = run(reference.beam_step, torch.float64, "reference")
    compare_steps(ours, exact, LOG_PROB_TOLERANCE)  # the choices: ties within the tolerance may fall otherwise
    present = exact.nodes >= 0
    return [
        distance("scores", ours.scores[present], exact.scores[present], LOG_PROB_TOLERANCE),
        same_bits(ours, run(beam_step, shape.dtype, "triton")),
    ]


def _check_advantages(groups: int, group_size: int, tawin: TAWin, device: torch.device, seed: int) -> list[Compared]:
    draw = _drawing(device, seed)
    shape = (groups, group_size)
    rewards = (torch.rand(shape, generator=draw, device=device) < 0.2).float()
    # Rounded, so that some scores are equal.
    scores = torch.randn(shape, generator=draw, device=device).mul(16).round().div(16)
    valid = torch.rand(shape, generator=draw, device=device) < 0.9
    negatives = valid & (rewards <= 0)

    def ours() -> list[Tensor]:
        return [
            group_advantages(rewards, scores, tawin=tawin, valid=valid, impl="triton"),
            tawin_weights(scores, negatives, tawin, impl="triton"),
        ]

    found = ours()
    advantages = reference.group_advantages(rewards.double(), scores, tawin=tawin, valid=valid)
    weights = reference.tawin_weights(scores.double(), negatives, tawin)
    return [
        distance("advantages", found[0], advantages, SMALL_TOLERANCE, relative=True),
        distance("weights", found[1], weights, SMALL_TOLERANCE, relative=True),
        same_bits(found, ours()),
    ]


def _check_grpo_loss(size: Size, device: torch.device, loss_type: LossType, seed: int) -> list[Compared]:
    draw = _drawing(device, seed)
    shape = (size.groups, size.group_size, size.length)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return torch.randn(sizes, generator=draw, device=device) * scale

    log_probs = normal(*shape) - 5.0
    mask = torch.rand(shape, generator=draw, device=device) < 0.8
    advantages = normal(*shape[:2])
    options: dict[str, Any] = {
        "old_log_probs": log_probs + normal(*shape, scale=0.3),
        "ref_log_probs": log_probs + normal(*shape, scale=0.3),
        "loss_type": loss_type,
        "beta": 0.04,
        "epsilon_high": 5.0 if loss_type == "cispo" else 0.28,
    }

    def run(op: Callable[..., Any], dtype: torch.dtype, impl: str) -> list[Tensor]:
        (leaf,) = _leaves([log_probs], dtype)
        result = op(leaf, mask, advantages.to(dtype), **options, impl=impl)
        result.loss.backward()
        assert leaf.grad is not None
        return [result.loss, leaf.grad, result.kl, result.clip_fraction]

    ours, again = (run(grpo_loss, torch.float32, "triton") for _ in range(2))
    exact = run(reference.grpo_loss, torch.float64, "reference")
    return [
        distance("loss", ours[0], exact[0], SMALL_TOLERANCE),
        distance("gradient of log-probs", ours[1], exact[1], SMALL_TOLERANCE, relative=True),
        distance("KL", ours[2], exact[2], SMALL_TOLERANCE),
        # A ratio within rounding of a bound may count on either side.
        distance("clip fraction", ours[3], exact[3], 2.0 / mask.sum().item()),
        same_bits(ours, again),
    ]


def _check_tawin_grpo_loss(size: Size, device: torch.device, dtype: torch.dtype, seed: int) -> list[Compared]:
    draw = _drawing(device, seed)
    inputs = _head_inputs(size, device, dtype, draw)
    shape = inputs["token_ids"].shape
    mask = torch.rand(shape, generator=draw, device=device) < 0.9
    rewards = torch.zeros(shape[:2], device=device)
    rewards[::2, 1] = 1.0  # every other group is dead
    scores = torch.randn(shape[:2], generator=draw, device=device)

    def run(op: Callable[..., Any], leaves: list[Tensor], impl: str) -> list[Tensor]:
        result = op(leaves[0], leaves[1], inputs["token_ids"], mask, rewards, scores, impl=impl)
        result.loss.backward()
        return [result.loss, result.log_probs, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    differentiable = [inputs["hidden"], inputs["lm_head_weight"]]
    ours, again = (run(tawin_grpo_loss, _leaves(differentiable), "triton") for _ in range(2))
    exact = run(reference.tawin_grpo_loss, _leaves(differentiable, torch.float64), "reference")
    tolerance = GRADIENT_TOLERANCE[dtype]
    return [
        distance("loss", ours[0], exact[0], SMALL_TOLERANCE),
        distance("log-probs", ours[1], exact[1], LOG_PROB_TOLERANCE),
        distance("gradient of hidden", ours[2], exact[2], tolerance, relative=True),
        distance("gradient of weight", ours[3], exact[3], tolerance, relative=True),
        same_bits(ours, again),
    ]


def outcome(name: str, check: Check) -> dict[str, Any]:
    """One check, run: what was compared, or what it raised."""
    try:
        compared = check()
    except Exception as error:
        traceback.print_exc()
        return {"check": name, "passed": False, "error": f"{type(error).__name__}: {error}"[:500]}
    return {
        "check": name,
        "passed": all(one.is_good for one in compared),
        "compared": {one.what: {"error": one.error, "allowed": one.allowed} for one in compared},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.kernel_checks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda or cpu")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", choices=TARGETS, help="on the CPU, as compiled for this GPU (tools.ptx_machine)")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    if options.compiled:
        switch_on(options.compiled)
    elif options.device.type == "cpu" and not INTERPRETED:
        parser.error("--device cpu: set TRITON_INTERPRET=1, kernels run through the interpreter there, or --compiled")
    # The interpreter's tl.dot multiplies the bits of bf16 operands as if they were integers.
    as_compiled = options.device.type == "cuda" or options.compiled
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if as_compiled else (torch.float16, torch.float32)
    tell_compilations(None)
    all_passed = True
    for name, check in checks(SIZES[options.size], options.device, dtypes, options.seed):
        result = outcome(name, check)
        all_passed &= result["passed"]
        print(json.dumps(result), flush=True)
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
