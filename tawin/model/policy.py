"""The policy: a causal LM and its tokenizer, loaded from a folder or the hub, or built small from a config.

Knows transformers and peft. Knows nothing of losses, rewards or runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..config import PolicyConfig
from ..pretrained import source_of
from .backbone import backbone

LORA_ALPHA = 32.0  # an adapter adds LORA_ALPHA / rank times its product
FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
"""By `policy.family`: a transformers configuration and the causal LM built from it."""


def build_model(config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> nn.Module:
    """A small decoder with random weights, tied embeddings and one embedding a token. fp32, on the CPU."""
    configuration, causal_lm = FAMILIES[config.family]
    shape = configuration(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden_size // config.heads,
        attention_dropout=config.attention_dropout,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        **({"query_pre_attn_scalar": config.hidden_size // config.heads} if config.family == "gemma3" else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return causal_lm(shape)


def load_model(
    name_or_path: str | Path, *, tokens: int | None = None, known: int | None = None, seed: int = 0
) -> nn.Module:
    """A causal LM as transformers loads it, in fp32 with sdpa attention.

    Args:
        name_or_path: a folder, a hub name or a GGUF file, whose weights are dequantised.
        tokens: size of the tokenizer; where it is larger than the embedding, rows are added (mean of the old rows
            plus noise, transformers' own rule).
        known: how many of them the model was trained with. Embeddings are often padded to more rows than that, which
            were never trained: those that new tokens take are drawn likewise. None: all.
        seed: of the new rows.

    Raises:
        ValueError: where shared-prefix attention or a plain softmax head would be wrong for this model.
    """
    source = source_of(name_or_path)
    # Said outright: left open, transformers would ask on a terminal whether to run the code that a folder brings.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    if "gguf_file" in source:  # dequantised as it was read, but transformers would not save it again
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens is not None and tokens > rows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(tokens)
    if tokens is not None and known is not None and known < min(tokens, rows):
        _draw_rows(model, known, min(tokens, rows), seed)
    backbone(model)  # refuses what cannot be trained right
    return model


@torch.no_grad()
def _draw_rows(model: Any, first: int, end: int, seed: int) -> None:
    """Set rows [first, end) of embedding and head to the mean of the rows before them and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    weights: list[torch.Tensor] = [part.weight for part in _embeddings(model)]  # type: ignore[misc]
    for weight in weights[: 1 if weights[0] is weights[1] else 2]:
        known = weight[:first]
        noise = torch.randn(end - first, known.shape[1], generator=generator)
        weight[first:end] = known.mean(0) + noise * known.std(0) * 1e-9**0.5  # transformers' scale of the variance


def _embeddings(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_input_embeddings(), model.get_output_embeddings()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards each of its modules in the mode that it was in.

    The mode is the model's, so all threads see it. Where several are within it, the last one to leave puts it back.
    """
    modules = list(model.modules())
    with _modes_lock:
        for module in modules:
            _modes.setdefault(module, _Mode(module.training)).calls += 1
        model.eval()
    try:
        yield
    finally:
        with _modes_lock:
            for module in modules:
                mode = _modes[module]
                mode.calls -= 1
                if mode.calls == 0:
                    module.training = mode.training
                    del _modes[module]


def is_training(model: nn.Module) -> bool:
    """Whether the model is in train mode, where other threads are within `evaluating`: whether it was."""
    with _modes_lock:
        mode = _modes.get(model)
        return model.training if mode is None else mode.training


@dataclass
class _Mode:
    """The mode of a module before the calls of `evaluating` that it is in."""

    training: bool
    calls: int = 0


_modes: dict[nn.Module, _Mode] = {}
_modes_lock = threading.Lock()


def add_lora(model: Any, config: PolicyConfig, new_tokens: list[int]) -> nn.Module:
    """Freeze the model and put LoRA on its linear layers; the embeddings of `new_tokens` stay trainable.

    In the head too: where it is not tied to the embedding, its rows of new tokens are as untrained as theirs.
    """
    from peft import LoraConfig, get_peft_model

    embeddings = _embeddings(model)
    tied = embeddings[0].weight is embeddings[1].weight
    names = [name for name, module in model.named_modules() if module in embeddings[: 1 if tied else 2]]
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        trainable_token_indices={name: new_tokens for name in names} if new_tokens else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def merged(model: nn.Module) -> nn.Module:
    """A plain transformers model with the adapters merged in: a copy for peft models, the model itself otherwise."""
    if not hasattr(model, "merge_and_unload"):
        return model
    import copy

    copied: Any = copy.deepcopy(model)
    return copied.merge_and_unload()
