"""differentiable_once: the gradient as it is, and no second one that lacks a term."""

from __future__ import annotations

import pytest
import torch
from tawin_kernels.autograd import differentiable_once


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_is_that_of_the_function(create_graph):
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(Cube.apply(x).sum(), x, create_graph=create_graph)
    assert gradient.tolist() == [12.0, 3.0]
    assert gradient.requires_grad == create_graph


@pytest.mark.parametrize("incoming", [torch.ones(2), torch.ones(2, requires_grad=True)])
def test_its_derivative_is_refused_whether_the_incoming_gradient_requires_one_or_not(incoming):
    x = torch.tensor([2.0, -1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(Cube.apply(x), x, incoming, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (x.sum() + gradient.sum()).backward()
