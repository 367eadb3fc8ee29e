"""Batches without their padding, and with what all rows begin with run once, give what padded batches give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, FalconConfig, FalconForCausalLM

from tawin.config import PolicyConfig
from tawin.model.backbone import backbone
from tawin.model.packing import Packing, checkpoint_activations, packs, rows_among, rows_at
from tawin.model.policy import add_lora
from tawin.model.token_tree import completion_states
from tawin.model.tree_attention import prefill
from tawin.search.graphs import obstacle

from ..models import FAMILIES, tiny_model

# fp32 through two layers of scaled-up weights; the order of summation differs between the two ways.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}
NO_WINDOW = [family for family in FAMILIES if family not in ("mistral", "gemma3")]


def prompts_that_begin_alike(common: int, own: list[int]) -> tuple[Tensor, Tensor]:
    """Left-padded prompts of `common` equal tokens and `own[b]` that differ from the first one on."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(3, 40, (common,), generator=generator)
    length = common + max(own)
    input_ids, mask = torch.zeros(len(own), length, dtype=torch.int64), torch.zeros(len(own), length, dtype=torch.int64)
    for row, count in enumerate(own):
        rest = torch.randint(3, 40, (count,), generator=generator)
        rest[0] = 3 + row
        input_ids[row, length - common - count :] = torch.cat((start, rest))
        mask[row, length - common - count :] = 1
    return input_ids, mask


def tokens_run(model: Any) -> list[int]:
    """Tokens that the first layer is handed, call by call."""
    packs(backbone(model))  # which try a model once
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _mlp, inputs: seen.append(inputs[0].shape[1]))
    return seen


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**31 - 1))
def test_unpacking_undoes_packing_and_fills_up_with_zeros(rows: int, columns: int, common: int, seed: int) -> None:
    common = min(common, columns - 1)
    draw = torch.Generator().manual_seed(seed)
    present = torch.rand(rows, columns, generator=draw) < 0.6
    present[:, :common] = True
    padded = torch.randn(rows, columns, 3, generator=draw)
    padded[:, :common] = padded[:1, :common]
    packing = Packing(present, common)
    packed = packing.pack(padded)
    assert len(packed) == common + int(present[:, common:].sum())
    assert torch.equal(packed[:common], padded[0, :common])
    kept = padded[:, common:].masked_fill(~present[:, common:, None], 0.0)
    assert torch.equal(packing.unpack_own(packed[common:]), kept)
    assert torch.equal(packing.pack_own(packing.unpack_own(packed[common:])), packed[common:])


def test_the_gradients_of_moving_rows_are_those_of_indexing() -> None:
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda r: rows_at(r, places), rows)
    assert torch.autograd.gradcheck(lambda r: rows_among(r[:3], places, 7), rows)
    assert torch.equal(rows_at(rows, places), rows[places])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("own", [[4, 2, 3], [3, 3, 3], [1, 5, 1]])
def test_what_all_prompts_begin_with_is_run_once_and_gives_the_same_states_and_gradients(
    family: str, own: list[int]
) -> None:
    model = tiny_model(family)
    input_ids, mask = prompts_that_begin_alike(6, own)
    token_ids = torch.randint(3, 40, (3, 2, 3), generator=torch.Generator().manual_seed(1))
    seen = tokens_run(model)
    states, rows = completion_states(backbone(model), input_ids, mask, token_ids)
    direction = torch.randn(3, 2, 3, 32, generator=torch.Generator().manual_seed(2))
    got = torch.autograd.grad((states[rows] * direction).sum(), list(model.model.parameters()))

    eager = tiny_model(family, attention="eager")  # runs padded, as it is
    assert packs(backbone(model)) and not packs(backbone(eager))
    expected_states, expected_rows = completion_states(backbone(eager), input_ids, mask, token_ids)
    torch.testing.assert_close(states[rows], expected_states[expected_rows], **TOLERANCE)
    expected = torch.autograd.grad((expected_states[expected_rows] * direction).sum(), list(eager.model.parameters()))
    for ours, theirs in zip(got, expected, strict=True):  # fp32 sums in another order
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-3)
    shared = 6 if family in NO_WINDOW else 3 * 6  # a window is a distance from each query: left alone
    assert seen[0] == shared + sum(own) + 3 * 2 * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefill_of_prompts_that_begin_alike_keeps_every_key_and_value(family: str) -> None:
    model, eager = tiny_model(family), tiny_model(family, attention="eager")
    input_ids, mask = prompts_that_begin_alike(5, [3, 1, 4])
    seen = tokens_run(model)
    prompt, expected = prefill(backbone(model), input_ids, mask), prefill(backbone(eager), input_ids, mask)
    assert seen == [5 + 8 if family in NO_WINDOW else 3 * 5 + 8]
    assert torch.equal(prompt.key_mask, expected.key_mask)
    torch.testing.assert_close(prompt.last_hidden, expected.last_hidden, **TOLERANCE)
    for ours, theirs in zip(prompt.cache.layers, expected.cache.layers, strict=True):
        for part in ("keys", "values"):
            real = prompt.key_mask[:, None, :, None]
            torch.testing.assert_close(getattr(ours, part) * real, getattr(theirs, part) * real, **TOLERANCE)


def test_equal_prompts_have_their_last_token_to_themselves() -> None:
    model = tiny_model("qwen2")
    input_ids = torch.tensor([[5, 6, 7, 8]] * 3)
    seen = tokens_run(model)
    prompt = prefill(backbone(model), input_ids, torch.ones_like(input_ids))
    assert seen == [3 + 3]
    torch.testing.assert_close(prompt.last_hidden, prompt.last_hidden[:1].expand(3, -1))


def test_a_decoder_whose_attention_cannot_be_replaced_runs_padded_and_is_right() -> None:
    # DiffLlama attends twice a layer, Falcon by itself.
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    models = [
        DiffLlamaForCausalLM(DiffLlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)),
        FalconForCausalLM(FalconConfig(**sizes, alibi=False)),
    ]
    for model in models:
        parts = backbone(model.eval())
        with pytest.warns(RuntimeWarning, match=f"{type(model.get_decoder()).__name__} runs with its padding"):
            assert not packs(parts)
        assert not packs(parts)  # tried and said once
        input_ids, mask = prompts_that_begin_alike(4, [3, 1])
        prompt = prefill(parts, input_ids, mask)
        for row in range(2):
            alone = parts.decoder(input_ids=input_ids[row][mask[row].bool()][None]).last_hidden_state[0, -1]
            torch.testing.assert_close(prompt.last_hidden[row], alone, **TOLERANCE)


def test_a_beginning_too_short_to_pay_and_a_single_prompt_are_run_as_they_are() -> None:
    model = tiny_model("qwen2")
    seen = tokens_run(model)
    input_ids, mask = prompts_that_begin_alike(1, [9, 9])
    prefill(backbone(model), input_ids, mask)
    prefill(backbone(model), input_ids[:1], mask[:1])
    assert seen == [20, 10]


def test_activation_checkpointing_works_with_a_beginning_that_is_run_once() -> None:
    input_ids, mask = prompts_that_begin_alike(6, [4, 2, 3])
    token_ids = torch.randint(3, 40, (3, 2, 3), generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model("qwen2").train()
        if checkpointed:
            checkpoint_activations(model)
            assert obstacle(backbone(model.eval())) is None  # nothing keeps CUDA graphs away
            model.train()
        seen = tokens_run(model)
        states, rows = completion_states(backbone(model), input_ids, mask, token_ids)
        states[rows].square().sum().backward()
        assert seen == [6 + 9 + 12] * (2 if checkpointed else 1)  # once more in the backward pass
        gradients.append([parameter.grad for parameter in model.model.parameters()])
    for plain, ours in zip(*gradients, strict=True):  # fp32 sums in another order
        torch.testing.assert_close(ours, plain, atol=1e-5 * max(1.0, float(plain.abs().max())), rtol=1e-3)


def test_activation_checkpointing_gives_adapters_their_gradients() -> None:
    input_ids, mask = prompts_that_begin_alike(6, [4, 2, 3])
    token_ids = torch.randint(3, 40, (3, 2, 3), generator=torch.Generator().manual_seed(1))
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model: Any = add_lora(tiny_model("qwen2"), PolicyConfig(lora_rank=2), []).train()
        if checkpointed:
            checkpoint_activations(model)
            assert obstacle(backbone(model.eval())) is None
            model.train()
        states, rows = completion_states(backbone(model), input_ids, mask, token_ids)
        states[rows].square().sum().backward()
        own = {name: parameter.grad for name, parameter in model.named_parameters() if "lora" in name}
        gradients.append({name: gradient for name, gradient in own.items() if gradient is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 0
    for name, plain in gradients[0].items():  # fp32 sums in another order
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-5 * max(1.0, float(plain.abs().max())), rtol=1e-3)
