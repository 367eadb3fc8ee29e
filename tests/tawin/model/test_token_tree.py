"""Each distinct prefix of a group run once gives what separate forwards give, hidden states and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tawin.model.backbone import Backbone, backbone
from tawin.model.packing import checkpoint_activations, packs
from tawin.model.token_tree import completion_states
from tawin.model.tree_attention import prefill

from ..models import FAMILIES, completion_hidden, ragged_prompts, tiny_model

# fp32 through two layers of scaled-up weights; the order of summation differs between the two ways.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


def completions(batch: int, group: int, length: int, vocabulary: int = 40) -> Tensor:
    """int64 [batch, group, length] of ragged completions, -100 = padding. A small vocabulary makes many begin alike."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, vocabulary, (batch, group, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch, group, 1), generator=generator)
    return tokens.masked_fill(torch.arange(length) >= lengths, -100)


def separate_hidden(model: nn.Module, input_ids: Tensor, mask: Tensor, token_ids: Tensor) -> Tensor:
    """The same states, each completion run alone behind its own prompt, without padding. Rows of real tokens only."""
    decoder, rows = backbone(model).decoder, []
    for b in range(token_ids.shape[0]):
        prompt = input_ids[b][mask[b].bool()]
        for completion in token_ids[b]:
            tokens = completion[completion >= 0]
            hidden = decoder(input_ids=torch.cat((prompt, tokens))[None]).last_hidden_state[0]
            rows.append(hidden[len(prompt) - 1 : len(prompt) - 1 + len(tokens)])
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("vocabulary", [40, 5])
def test_hidden_states_and_gradients_equal_those_of_separate_forwards(family, attention, vocabulary) -> None:
    model = tiny_model(family, attention=attention)
    input_ids, mask = ragged_prompts(3, 6)
    token_ids = completions(3, 4, 5, vocabulary)
    real = token_ids >= 0
    direction = torch.randn(int(real.sum()), 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for shared in (True, False):
        model.zero_grad()
        if shared:
            hidden = completion_hidden(backbone(model), input_ids, mask, token_ids)
            assert hidden.shape == (3, 4, 5, 32)
            rows = hidden[real]
        else:
            rows = separate_hidden(model, input_ids, mask, token_ids)
        (rows * direction).sum().backward()
        gradients.append(
            (rows.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    (ours, our_grads), (theirs, their_grads) = gradients
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert our_grads.keys() == their_grads.keys()
    for name, gradient in our_grads.items():
        scale = float(their_grads[name].abs().max())
        torch.testing.assert_close(gradient, their_grads[name], atol=1e-4 * max(1.0, scale), rtol=1e-3, msg=name)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("vocabulary", [40, 5])
def test_states_without_repeats_are_the_hidden_states_and_give_their_gradients(length: int, vocabulary: int) -> None:
    model = tiny_model("qwen2")
    input_ids, mask = ragged_prompts(3, 6)
    token_ids = completions(3, 6, length, vocabulary)
    real = token_ids >= 0
    direction = torch.randn(int(real.sum()), 32, generator=torch.Generator().manual_seed(2))
    hidden = completion_hidden(backbone(model), input_ids, mask, token_ids)[real]
    expected = torch.autograd.grad((hidden * direction).sum(), list(model.model.parameters()))
    states, rows = completion_states(backbone(model), input_ids, mask, token_ids)
    assert rows.shape == token_ids.shape and rows.dtype == torch.int64
    assert int(rows.min()) >= 0 and int(rows.max()) < len(states)
    prefixes = [
        {tuple(tokens[:end]) for tokens in group for end in range(1, length) if tokens[end] >= 0}
        for group in token_ids.tolist()
    ]
    assert len(states) == sum(1 + len(own) for own in prefixes)
    assert (rows[:, :, 0] == rows[:, :1, 0]).all()
    assert torch.equal(states[rows[real]], hidden)
    got = torch.autograd.grad((states[rows[real]] * direction).sum(), list(model.model.parameters()))
    for ours, theirs in zip(got, expected, strict=True):
        # fp32 sums in another order
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-4)


def test_completions_of_one_token_need_no_suffix() -> None:
    model = tiny_model("qwen2")
    input_ids, mask = ragged_prompts(2, 4)
    token_ids = completions(2, 3, 1)
    hidden = completion_hidden(backbone(model), input_ids, mask, token_ids)
    torch.testing.assert_close(hidden[token_ids >= 0], separate_hidden(model, input_ids, mask, token_ids), **TOLERANCE)


def test_a_completion_does_not_see_its_neighbours() -> None:
    model = tiny_model("gemma3")
    input_ids, mask = ragged_prompts(1, 4)
    token_ids = completions(1, 3, 4).clamp_min(3)
    changed = token_ids.clone()
    changed[:, 1:] = 3
    parts = backbone(model)
    before = completion_hidden(parts, input_ids, mask, token_ids)
    after = completion_hidden(parts, input_ids, mask, changed)
    torch.testing.assert_close(before[:, 0], after[:, 0], **TOLERANCE)
    assert not torch.allclose(before[:, 1, 1:], after[:, 1, 1:], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_not_run_and_the_last_mlp_only_where_its_output_is_wanted(family: str) -> None:
    model = tiny_model(family)
    input_ids, mask = ragged_prompts(2, 6)
    seen: dict[int, int] = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate_proj.register_forward_hook(
            lambda _module, inputs, _output, number=number: seen.update({number: inputs[0].shape[1]})
        )
    completion_hidden(backbone(model), input_ids, mask, 3 + torch.arange(24).view(2, 3, 4))
    real = int(mask.sum())
    assert real < mask.numel()
    assert seen == {0: real + 2 * 9, 1: 2 * (1 + 9)}
    prefill(backbone(model), input_ids, mask)
    assert seen == {0: real, 1: 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_gives_the_same_gradients(family: str) -> None:
    input_ids, mask = ragged_prompts(2, 6)
    token_ids = completions(2, 3, 4)
    gradients = []
    for checkpoint in (None, checkpoint_activations, lambda model: model.gradient_checkpointing_enable()):
        model = tiny_model(family).train()
        if checkpoint is not None:
            checkpoint(model)
            assert packs(backbone(model)) == (checkpoint is checkpoint_activations)
        completion_hidden(backbone(model), input_ids, mask, token_ids)[token_ids >= 0].square().sum().backward()
        gradients.append([p.grad for p in model.model.parameters()])
    for plain, ours, theirs in zip(*gradients, strict=True):
        scale = float(plain.abs().max())
        for checkpointed in (ours, theirs):  # fp32 sums in another order
            torch.testing.assert_close(checkpointed, plain, atol=1e-5 * max(1.0, scale), rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_that_was_prefilled_with_its_gradient_is_not_run_again(family: str, attention: str) -> None:
    model = tiny_model(family, attention=attention)
    parts = backbone(model)
    input_ids, mask = ragged_prompts(3, 6)
    token_ids = completions(3, 4, 5)
    real = token_ids >= 0
    states, rows = completion_states(parts, input_ids, mask, token_ids)
    direction = torch.randn(int(real.sum()), 32, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((states[rows[real]] * direction).sum(), list(model.model.parameters()))
    seen: list[int] = []
    prompt = prefill(parts, input_ids, mask)
    for _ in range(2):  # the prompt is left as it is
        hook = model.model.layers[0].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
        found, rows = completion_states(parts, input_ids, mask, token_ids, prompt)
        hook.remove()
        torch.testing.assert_close(found[rows[real]], states[rows_of(parts, input_ids, mask, token_ids)], **TOLERANCE)
    assert max(seen) <= len(states) - 3  # without the three ends of prompts
    got = torch.autograd.grad((found[rows[real]] * direction).sum(), list(model.model.parameters()))
    for ours, theirs in zip(got, expected, strict=True):  # fp32 sums in another order
        torch.testing.assert_close(ours, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max())), rtol=1e-3)


def rows_of(parts: Backbone, input_ids: Tensor, mask: Tensor, token_ids: Tensor) -> Tensor:
    """The state of each real token, without a prompt that was prefilled."""
    return completion_states(parts, input_ids, mask, token_ids)[1][token_ids >= 0]
