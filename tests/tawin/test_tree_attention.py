"""Shared-prefix forwards give what separate forwards give, hidden states and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoConfig, MptConfig

from tawin.tree_attention import backbone, check_prompts, completion_hidden, prefill

from .models import FAMILIES, ragged_prompts, tiny_model

# fp32 through two layers of scaled-up weights; the order of summation differs between the two ways.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


def completions(batch: int, group: int, length: int, vocabulary: int = 40) -> Tensor:
    """int64 [batch, group, length] of ragged completions, -100 = padding."""
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
def test_hidden_states_and_gradients_equal_those_of_separate_forwards(family: str, attention: str) -> None:
    model = tiny_model(family, attention=attention)
    input_ids, mask = ragged_prompts(3, 6)
    token_ids = completions(3, 4, 5)
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


def test_the_effective_head_weight_includes_a_lora_and_gives_it_its_gradient() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("qwen2", tie_word_embeddings=False), LoraConfig(r=2, target_modules=["lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    input_ids, _ = ragged_prompts(1, 5)
    logits = model(input_ids=input_ids).logits
    parts = backbone(model)
    hidden = parts.decoder(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(hidden @ parts.weight.T, logits, **TOLERANCE)
    (hidden @ parts.weight.T).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)
    with model.disable_adapter():
        plain = model(input_ids=input_ids).logits
        torch.testing.assert_close(hidden @ parts.weight.T, plain, **TOLERANCE)
    assert not torch.allclose(plain, logits, atol=1e-2)


def test_the_effective_head_weight_includes_trained_tokens() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", trainable_token_indices=[5, 6])
    model = get_peft_model(tiny_model("qwen2", tie_word_embeddings=True), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1.0)
    input_ids, _ = ragged_prompts(1, 5)
    parts = backbone(model)
    hidden = parts.decoder(input_ids=input_ids).last_hidden_state
    torch.testing.assert_close(hidden @ parts.weight.T, model(input_ids=input_ids).logits, **TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5"),
        ({"_attn_implementation": "flex_attention"}, "flex_attention"),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(changes: dict[str, object], message: str) -> None:
    model = tiny_model("qwen2")
    for name, value in changes.items():
        object.__setattr__(model.config, name, value) if name.startswith("layer") else setattr(
            model.config, name, value
        )
    with pytest.raises(ValueError, match=message):
        backbone(model)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        check_prompts(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 0, 1], [0, 0, 0]]))


def test_a_head_that_scales_its_logits_is_refused() -> None:
    model = tiny_model("llama")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 0.5 * plain(hidden)
    with pytest.raises(ValueError, match=r"logits are not hidden @ lm_head\.T"):
        backbone(model)


def test_trying_a_head_leaves_the_random_state_alone() -> None:
    model = tiny_model("qwen2", attention_dropout=0.5).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    backbone(model)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=20), "BloomForCausalLM"),
        (
            GPTNeoConfig(
                hidden_size=16, num_layers=2, num_heads=2, vocab_size=20, attention_types=[[["global", "local"], 1]]
            ),
            "GPTNeo",
        ),
        (MptConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=20), "MptForCausalLM"),
    ],
    ids=["bloom", "gpt-neo", "mpt"],
)
def test_models_whose_attention_does_not_follow_mask_and_positions_are_refused(config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(AutoModelForCausalLM.from_config(config))


def test_a_model_that_keeps_no_cache_is_refused_with_what_to_do() -> None:
    model = tiny_model("qwen2").train()
    model.gradient_checkpointing_enable()
    input_ids, mask = ragged_prompts(2, 4)
    with pytest.raises(ValueError, match=r"keeps no cache.*model\.eval\(\)"):
        prefill(backbone(model), input_ids, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_mlp_runs_only_where_its_output_is_wanted(family: str) -> None:
    model = tiny_model(family)
    input_ids, mask = ragged_prompts(2, 6)
    seen: dict[int, int] = {}
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate_proj.register_forward_hook(
            lambda _module, inputs, _output, number=number: seen.update({number: inputs[0].shape[1]})
        )
    completion_hidden(backbone(model), input_ids, mask, torch.full((2, 3, 4), 5))
    assert seen == {0: 6 + 9, 1: 1 + 9}
    prefill(backbone(model), input_ids, mask)
    assert seen == {0: 6, 1: 1}


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    input_ids, mask = ragged_prompts(2, 6)
    token_ids = completions(2, 3, 4)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("qwen2").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        completion_hidden(backbone(model), input_ids, mask, token_ids)[token_ids >= 0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-3, rtol=1e-3)
