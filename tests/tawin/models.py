"""Tiny causal LMs from configs, one a decoder family, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tawin.model.backbone import Backbone
from tawin.model.token_tree import completion_states

MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
"""Sizes of DeepSeek's attention and experts."""

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma3")


def tiny_model(
    family: str, vocabulary: int = 40, *, seed: int = 0, attention: str = "sdpa", **changes: object
) -> nn.Module:
    """A two-layer decoder of the family in eval mode. Its weights are scaled up so that it has strong preferences."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "attn_implementation": attention,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    torch.manual_seed(seed)
    makers = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in common.items() if k != "head_dim"})),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**common)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**{"sliding_window": 4, **common})),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**common)),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**{"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], **common})
        ),
    }
    model = makers[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6.0)
    return model.eval()


def ragged_prompts(
    batch: int, length: int, vocabulary: int = 40, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of lengths 1..length: input_ids and attention_mask, int64 [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocabulary, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) >= length - lengths[:, None]).long()
    return input_ids * mask, mask


def completion_hidden(model: Backbone, input_ids: Tensor, attention_mask: Tensor, token_ids: Tensor) -> Tensor:
    """The states of `completion_states`, one for each token: [B, G, L, H], of no meaning at padding."""
    states, rows = completion_states(model, input_ids, attention_mask, token_ids)
    return states[rows]
