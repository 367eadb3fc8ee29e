"""Tiny causal LMs from configs, one a decoder family, for tests."""

from __future__ import annotations

import itertools
import random

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


def random_items(count: int, lengths: tuple[int, int], *, seed: int, vocabulary: int = 40) -> list[list[int]]:
    """Distinct token lists, none with a special token; some are prefixes of others where lengths differ."""
    draw = random.Random(seed)
    items: set[tuple[int, ...]] = set()
    while len(items) < count:
        length = draw.randint(*lengths)
        items.add(
            tuple(
                draw.randint(3, 3 + 5) if draw.random() < 0.7 else draw.randint(3, vocabulary - 1)
                for _ in range(length)
            )
        )
    return [list(item) for item in sorted(items)]


def exhaustive(model: nn.Module, input_ids: Tensor, mask: Tensor, items: list[list[int]]) -> Tensor:
    """log p of every item after every prompt, each run alone without a cache or padding. [B, items]"""
    scores = torch.zeros(len(input_ids), len(items))
    for row, column in itertools.product(range(len(input_ids)), range(len(items))):
        prompt = input_ids[row][mask[row].bool()]
        tokens = torch.tensor(items[column])
        logits = model(input_ids=torch.cat((prompt, tokens))[None]).logits[0].log_softmax(-1)
        scores[row, column] = logits[len(prompt) - 1 : -1].gather(1, tokens[:, None]).sum()
    return scores
