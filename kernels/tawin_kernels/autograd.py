"""What PyTorch's transforms may do with the ops: differentiate them once, and nothing else in silence.

The kernels are differentiable once, outside of `torch.func`, and `torch.compile` leaves the ops as they are. Whoever
asks for more is told so by the op's name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch._C import _functorch
from torch._compile import _disable_dynamo

Op = TypeVar("Op", bound=Callable[..., Any])

_BATCHED = torch._C._dispatch_key_parse("Batched")  # of batched gradients, which are older than torch.func


def uncompiled(op: Op) -> Op:
    """`torch.compiler.disable` of a public op, that keeps its type and imports the compiler only while it traces.

    Tracing an op gains nothing, as it is kernels already, and breaks the graph within it in many places instead of one.
    """
    disabled = _disable_dynamo(op)

    @wraps(op)
    def run(*arguments: Any, **options: Any) -> Any:
        return (disabled if torch.compiler.is_compiling() else op)(*arguments, **options)

    return cast(Op, run)


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether it is the stand-in of `torch.func.grad`, `torch.vmap` and their like for a tensor."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether it is the stand-in of `torch.vmap`, or of batched gradients, for a tensor of one dimension more."""
    return _functorch.is_batchedtensor(tensor) or torch._C._dispatch_keys(tensor).has(_BATCHED)


def apply(op: str, function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`; RuntimeError inside a transform of `torch.func`."""
    if any(isinstance(argument, torch.Tensor) and is_transformed(argument) for argument in arguments):
        raise RuntimeError(
            f"{op}: the Triton kernels cannot be called inside torch.func's transforms (grad, vjp, jacrev, ...); "
            "use torch.autograd.grad, or impl='reference'"
        )
    return function.apply(*arguments)


def differentiable_once(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For the backward of an autograd function of `op`: batched gradients and a second derivative raise RuntimeError.

    PyTorch's `once_differentiable` sees to the latter only where the incoming gradient itself requires one. Else the
    gradients look like constants, and what is made of them (a gradient penalty, say) silently lacks a term.
    """

    def guard(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def guarded(ctx: Any, *gradients: Any) -> Any:
            if any(isinstance(gradient, torch.Tensor) and is_batched(gradient) for gradient in gradients):
                raise RuntimeError(
                    f"{op}: the Triton kernels take no batched gradients (is_grads_batched=True, vectorize=True, "
                    "torch.vmap over a backward pass); take one at a time, or use impl='reference'"
                )
            with torch.no_grad():
                results = backward(ctx, *gradients)
            return _Undifferentiable.apply(op, *map(_leaf, results)) if torch.is_grad_enabled() else results

        return guarded

    return guard


class _Undifferentiable(torch.autograd.Function):
    """First derivatives as they are, with create_graph=True; their own derivative raises."""

    @staticmethod
    def forward(ctx: Any, op: str, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        ctx.op = op
        return tuple(None if gradient is None else gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.op}: trying to differentiate twice through the Triton kernels, which are differentiable once; "
            "impl='reference' has second derivatives"
        )


def _leaf(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.detach().requires_grad_()
