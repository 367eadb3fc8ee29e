"""Models taken apart: what the head is with adapters, and which models are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertGenerationConfig,
    BloomConfig,
    DeepseekV3Config,
    ElectraConfig,
    GPTNeoConfig,
    MoshiConfig,
    MptConfig,
    RemBertConfig,
    XLMConfig,
)

from tawin.model.backbone import backbone
from tawin.model.packing import packs

from ..models import MLA, ragged_prompts, tiny_model

# fp32 through two layers of scaled-up weights; the order of summation differs between the two ways.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


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


def test_a_head_that_is_trained_whole_is_the_base_models_where_adapters_are_disabled() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model("qwen2", tie_word_embeddings=False), config)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    input_ids, _ = ragged_prompts(1, 5)
    parts = backbone(model)
    hidden = parts.decoder(input_ids=input_ids).last_hidden_state  # LoRA's second factor is still zero
    trained = model(input_ids=input_ids).logits
    torch.testing.assert_close(hidden @ parts.weight.T, trained, **TOLERANCE)
    with model.disable_adapter():
        plain = model(input_ids=input_ids).logits
        torch.testing.assert_close(hidden @ parts.weight.T, plain, **TOLERANCE)
    assert not torch.allclose(plain, trained, atol=1e-2)


def test_a_model_that_accelerate_prepared_for_bf16_is_taken() -> None:
    from accelerate.utils import convert_outputs_to_fp32

    model = tiny_model("qwen2")
    # What `prepare_model` does: an Accelerator itself would set the precision of every other test in the process.
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    assert model(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.float32
    assert backbone(model).weight.dtype == torch.float32


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


def test_noise_in_train_mode_is_no_reason_to_refuse_a_model_or_to_pad_it_for_good() -> None:
    model = tiny_model("qwen2").train()

    def neftune(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + torch.rand_like(output) if module.training else output

    model.get_input_embeddings().register_forward_hook(neftune)
    assert not packs(backbone(model))
    assert packs(backbone(model.eval()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_in_train_mode_is_tried_as_in_eval_mode_and_keeps_its_mode(dropout: float) -> None:
    model = tiny_model("qwen2", attention_dropout=dropout).train()
    model.model.layers[0].eval()  # a frozen part
    before = [module.training for module in model.modules()]
    assert packs(backbone(model))
    assert [module.training for module in model.modules()] == before


def head_in_a_sequence() -> torch.nn.Module:
    model = tiny_model("qwen2", tie_word_embeddings=False)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    return model


SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def from_config(configuration: Any, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configuration(**SMALL, **changes)).eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (head_in_a_sequence, r"Qwen2ForCausalLM: expected an LM head with a weight \[V, H\], got Sequential"),
        (lambda: from_config(ElectraConfig), "ElectraForCausalLM: its LM head takes 128 numbers a token, its decoder"),
        (lambda: from_config(RemBertConfig, output_embedding_size=64), "RemBertForCausalLM: its LM head takes 64"),
        (lambda: from_config(BertGenerationConfig), "BertGenerationDecoder: .* sees later tokens"),
        (lambda: from_config(MoshiConfig, sliding_window=3000), "MoshiForCausalLM: its sliding window of 3000"),
        (lambda: from_config(XLMConfig), "XLM.*not supported"),
        # More key heads than MLA has: its own forward fails.
        (lambda: from_config(DeepseekV3Config, **MLA, num_key_value_heads=2), "DeepseekV3ForCausalLM: its forward on"),
    ],
    ids=["sequence", "electra", "rembert", "bert-generation", "moshi", "xlm", "mla"],
)
def test_what_beams_would_get_wrong_or_crash_on_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(make())
