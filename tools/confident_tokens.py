"""How exact the gradient of a confident token is: the kernels beside a one-hot that is subtracted before rounding.

Run: python -m tools.confident_tokens [--device cuda]     (on the CPU with TRITON_INTERPRET=1)

    dz = c (onehot(t) - p)        p of the token from .01 to .9999

Where c onehot and -c p are rounded to 16 bits before they meet, what is left of a confident token is noise. TRL and
Liger subtract in fp32 and round dz; so does `one_hot_first` here. Printed for each case: the relative error
|g - exact| / |exact| of the worst row of dhidden and of dweight, exact in fp64; once for the kernels, once for
`one_hot_first`. Exit status 1 where the kernels are worse than 1.5 x that.

With rows, three pairs share each state: the confident token twice and another one. "halves": two tokens of probability
p / 2 each with the same coefficient, so that the gradient of both nearly vanishes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tawin_kernels.ops.log_prob import triton_log_probs
from tawin_kernels.ops.log_prob.one_pass import triton_one_pass
from torch import Tensor

from .bf16_interpreter import exact_bf16

PROBABILITIES = (0.01, 0.9, 0.99, 0.999, 0.9999)
DTYPES = (torch.bfloat16, torch.float16)
SHARING = ("no rows", "rows", "halves")
_R, _H, _V = 12, 64, 300
_WORST_RATIO = 1.5


@dataclass(frozen=True)
class Case:
    """Rows whose target has probability p, and coefficients of different sizes."""

    p: float
    dtype: torch.dtype
    sharing: str
    hidden: Tensor  # [R, H]
    weight: Tensor  # [V, H]
    token_ids: Tensor  # int64 [N]
    rows: Tensor | None  # int64 [N]
    coefficients: Tensor  # fp32 [N]


@dataclass(frozen=True)
class Errors:
    """Of the worst row; None where it is not made."""

    hidden: float
    weight: float | None


def case_of(p: float, dtype: torch.dtype, sharing: str, device: torch.device) -> Case:
    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn(_V, _H, generator=draw) / 8).to(dtype).double()
    targets = torch.arange(_R)
    partners = targets + _R
    noise = 0.5 * torch.randn(_R, _H, generator=draw).double()
    direction = weight[targets]
    if sharing == "halves":
        # The state lies halfway between the two tokens, so their logits are the same.
        across = weight[targets] - weight[partners]
        noise -= (noise * across).sum(-1, keepdim=True) / across.square().sum(-1, keepdim=True) * across
        mean = (weight[targets] + weight[partners]) / 2
        direction = mean - (mean * across).sum(-1, keepdim=True) / across.square().sum(-1, keepdim=True) * across
    low, high = torch.full((_R, 1), -200.0).double(), torch.full((_R, 1), 400.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = (noise + middle * direction) @ weight.T
        probabilities = probabilities.softmax(-1)
        reached = probabilities[range(_R), targets, None] * (2.0 if sharing == "halves" else 1.0)
        low, high = torch.where(reached < p, middle, low), torch.where(reached < p, high, middle)
    hidden = (noise + high * direction).to(dtype)
    tokens, rows = targets, None
    sizes = torch.linspace(0.3, 1.7, _R)
    if sharing == "rows":
        tokens = torch.stack([targets, (targets + 7) % _V, targets], 1).flatten()
        rows = torch.arange(_R).repeat_interleave(3)
        sizes = (sizes[:, None] * torch.tensor([1.0, 0.01, 0.3])).flatten()
    elif sharing == "halves":
        tokens = torch.stack([targets, partners], 1).flatten()
        rows = torch.arange(_R).repeat_interleave(2)
        sizes = sizes.repeat_interleave(2)
    return Case(
        p,
        dtype,
        sharing,
        hidden.to(device),
        weight.to(dtype).to(device),
        tokens.to(device),
        None if rows is None else rows.to(device),
        sizes.to(device),
    )


def exact(case: Case) -> tuple[Tensor, Tensor]:
    """dhidden and dweight in fp64."""
    dz = _dz(case, torch.float64)
    return dz @ case.weight.double(), dz.T @ case.hidden.double()


def one_hot_first(case: Case) -> tuple[Tensor, Tensor]:
    """The same with dz made in fp32 and rounded, products summed in fp32 and rounded."""
    dz = _dz(case, torch.float32).to(case.dtype).float()
    return (dz @ case.weight.float()).to(case.dtype), (dz.T @ case.hidden.float()).to(case.dtype)


def _dz(case: Case, dtype: torch.dtype) -> Tensor:
    """[R, V]"""
    probabilities = (case.hidden.to(dtype) @ case.weight.to(dtype).T).softmax(-1)
    rows = torch.arange(_R, device=case.hidden.device) if case.rows is None else case.rows
    one_hots = case.coefficients.to(dtype)[:, None] * F.one_hot(case.token_ids, _V).to(dtype)
    sums = torch.zeros_like(probabilities).index_add(0, rows, one_hots)
    return sums - sums.sum(-1, keepdim=True) * probabilities


def by_kernels(case: Case, *, frozen: bool) -> tuple[Tensor, Tensor | None]:
    hidden = case.hidden.detach().requires_grad_()
    weight = case.weight.detach().requires_grad_(not frozen)
    with exact_bf16() if case.hidden.device.type == "cpu" else nullcontext():
        log_probs = triton_log_probs(hidden, weight, None, case.token_ids, 1.0, rows=case.rows)
        log_probs.backward(case.coefficients)
    assert hidden.grad is not None
    return hidden.grad, weight.grad


def in_one_pass(case: Case) -> Tensor:
    """dhidden where log p and the gradient are made together, as for an on-policy loss with a frozen head."""
    with exact_bf16() if case.hidden.device.type == "cpu" else nullcontext():
        _, of_hidden = triton_one_pass(
            case.hidden, case.weight, None, case.token_ids, 1.0, case.rows, case.coefficients
        )
    return of_hidden.to(case.dtype)


def errors_of(gradients: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor]) -> Errors:
    def worst(got: Tensor, wanted: Tensor) -> float:
        return float(((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())

    hidden, weight = gradients
    return Errors(worst(hidden, expected[0]), None if weight is None else worst(weight, expected[1]))


def compared(case: Case, *, frozen: bool) -> tuple[Errors, Errors]:
    """The errors of the kernels and of `one_hot_first`."""
    expected = exact(case)
    return errors_of(by_kernels(case, frozen=frozen), expected), errors_of(one_hot_first(case), expected)


def is_good(kernels: Errors, others: Errors) -> bool:
    """Nowhere worse than 1.5 x the one-hot first."""
    assert others.weight is not None
    weight_is_good = kernels.weight is None or kernels.weight <= _WORST_RATIO * others.weight
    return kernels.hidden <= _WORST_RATIO * others.hidden and weight_is_good


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in DTYPES:
        for sharing in SHARING:
            for p in PROBABILITIES:
                yield case_of(p, dtype, sharing, device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.confident_tokens", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args(arguments).device)
    print("| dtype | pairs | p | one pass: dhidden | frozen head: dhidden | dhidden | dweight ", end="")
    print("| one-hot first: dhidden | dweight |\n|---|---|---|---|---|---|---|---|---|")
    good = True
    for case in cases(device):
        frozen, others = compared(case, frozen=True)
        trained, _ = compared(case, frozen=False)
        together = errors_of((in_one_pass(case), None), exact(case))
        good &= all(is_good(errors, others) for errors in (together, frozen, trained))
        figures = (together.hidden, frozen.hidden, trained.hidden, trained.weight, others.hidden, others.weight)
        name = str(case.dtype).removeprefix("torch.")
        print(f"| {name} | {case.sharing} | {case.p} | " + " | ".join(f"{x:.1e}" for x in figures) + " |", flush=True)
    if not good:
        print(f"worse than {_WORST_RATIO} x the one-hot first")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
