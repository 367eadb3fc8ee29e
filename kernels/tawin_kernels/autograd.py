"""What the package's autograd functions share: they are differentiable once, and asking for more raises."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose own derivative is not written: differentiating its result raises RuntimeError.

    PyTorch's `once_differentiable` sees to that only where the incoming gradient itself requires one. Else the
    gradients look like constants, and what is made of them (a gradient penalty, say) silently lacks a term.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def guarded(ctx: Any, gradient: torch.Tensor, *others: Any) -> Any:
        if torch.is_grad_enabled():  # with create_graph=True only
            gradient = gradient.detach().requires_grad_()
        return once(ctx, gradient, *others)

    return guarded
