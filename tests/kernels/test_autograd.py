"""The gradient as it is, no second one that lacks a term, and no transform that goes wrong in silence."""

from __future__ import annotations

import pytest
import torch
from tawin_kernels import (
    ItemTrie,
    TAWin,
    beam_step,
    group_advantages,
    grpo_loss,
    linear_log_probs,
    tawin_grpo_loss,
    tawin_weights,
)
from tawin_kernels.autograd import differentiable_once

from .devices import DEVICE


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @differentiable_once("cube")
    def backward(ctx, gradient):
        return (3 * ctx.saved_tensors[0] ** 2 * gradient,)


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
    with pytest.raises(RuntimeError, match=r"^cube: trying to differentiate twice"):
        (x.sum() + gradient.sum()).backward()


TRIE = ItemTrie.from_sequences([[0, 1], [2, 3], [2, 4]]).to(DEVICE)
MASK = torch.ones(2, 3, 2, dtype=torch.bool, device=DEVICE)


def draw(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(DEVICE)


WEIGHT, TOKENS = draw(5, 4), torch.zeros(2, 3, 2, dtype=torch.int64, device=DEVICE)
REWARDS, SCORES = torch.eye(2, 3, device=DEVICE), draw(2, 3)

# Op -> a function of one tensor that it is differentiable in, and such a tensor.
DIFFERENTIABLE = {
    "linear_log_probs": (lambda hidden, impl: linear_log_probs(hidden, WEIGHT, TOKENS, impl=impl), draw(2, 3, 2, 4)),
    "linear_log_probs over children": (
        lambda hidden, impl: linear_log_probs(
            hidden, WEIGHT, TOKENS, normalizer="trie", trie=TRIE, nodes=torch.zeros_like(TOKENS), impl=impl
        ),
        draw(2, 3, 2, 4),
    ),
    "grpo_loss": (lambda log_probs, impl: grpo_loss(log_probs, MASK, REWARDS, impl=impl).loss, draw(2, 3, 2)),
    "tawin_grpo_loss": (
        lambda hidden, impl: tawin_grpo_loss(hidden, WEIGHT, TOKENS, MASK, REWARDS, SCORES, impl=impl).loss,
        draw(2, 3, 2, 4),
    ),
}
OTHERS = {
    "beam_step": (
        lambda hidden, impl: (
            beam_step(
                hidden, WEIGHT, TRIE, torch.zeros_like(TOKENS[..., 0]), torch.zeros_like(REWARDS), 2, impl=impl
            ).scores
        ),
        draw(2, 3, 4),
    ),
    "tawin_weights": (lambda scores, impl: tawin_weights(scores, REWARDS == 0, TAWin(), impl=impl), draw(2, 3)),
    "group_advantages": (lambda rewards, impl: group_advantages(rewards, impl=impl), REWARDS),
}
ALL = {**DIFFERENTIABLE, **OTHERS}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_transforms_of_torch_func_are_refused_by_the_kernels_and_taken_by_the_reference(name):
    op, x = DIFFERENTIABLE[name]
    with pytest.raises(
        RuntimeError, match=r"^(linear_log_probs|grpo_loss): the Triton kernels cannot be .* torch.func"
    ):
        torch.func.grad(lambda x: op(x, "triton").sum())(x)
    x = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(op(x, "reference").sum(), x)
    got = torch.func.grad(lambda x: op(x, "reference").sum())(x.detach())
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", OTHERS)
def test_ops_without_a_gradient_are_refused_inside_a_transform_too(name):
    op, x = OTHERS[name]
    with pytest.raises(RuntimeError, match=r"the Triton kernels cannot be called inside torch.func"):
        torch.func.grad(lambda x: op(x, "triton").sum() + x.sum())(x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_vmap_is_refused_by_the_name_of_the_argument(name, impl):
    op, x = ALL[name]
    with pytest.raises(TypeError, match=r"^(hidden|log_probs|scores|rewards): expected a tensor outside of torch.vmap"):
        torch.vmap(lambda x: op(x, impl))(torch.stack([x, x]))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batched_gradients_are_refused_by_name(name):
    op, x = DIFFERENTIABLE[name]
    x = x.detach().requires_grad_()
    result = op(x, "triton")
    with pytest.raises(
        RuntimeError, match=r"^(linear_log_probs|grpo_loss): the Triton kernels take no batched gradients"
    ):
        torch.autograd.grad(result, x, torch.ones(3, *result.shape, device=DEVICE), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="take no batched gradients"):
        torch.autograd.functional.jacobian(lambda x: op(x, "triton"), x, vectorize=True)
    rows = torch.autograd.functional.jacobian(lambda x: op(x, "triton"), x)
    expected = torch.autograd.functional.jacobian(lambda x: op(x, "reference"), x)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_second_derivative_is_refused_by_name(name):
    op, x = DIFFERENTIABLE[name]
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(op(x, "triton").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^(linear_log_probs|grpo_loss): trying to differentiate twice"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_compiled_function_calls_an_op_as_it_is(name, impl):
    op, x = ALL[name]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: op(2.0 * x, impl) + 1.0, backend="eager")
    expected = op(2.0 * x, impl) + 1.0
    assert torch.equal(compiled(x), expected)
    if name in DIFFERENTIABLE:
        gradients = []
        for function in (compiled, lambda x: op(2.0 * x, impl) + 1.0):
            own = x.detach().requires_grad_()
            function(own).sum().backward()
            gradients.append(own.grad)
        assert torch.equal(*gradients)
    with pytest.raises(RuntimeError, match=f"`{name.split()[0]}`"):  # one break, at the op, and no whole graph
        torch.compile(lambda x: op(x, impl), backend="eager", fullgraph=True)(x)
