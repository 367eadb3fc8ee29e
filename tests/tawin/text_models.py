"""What pretrained models bring: tokenizers with a chat template, or as Llama 2's is, and a whole folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tawin.catalog.tokenizer import train_title_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(texts: Sequence[str], vocabulary: int = 400) -> PreTrainedTokenizerBase:
    """As Qwen's instruction-tuned models have it: no bos token, <|im_end|> as the end token, a chat template."""
    tokenizer = train_title_tokenizer(texts, vocabulary)
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken("<|im_start|>", special=True),
                AddedToken("<|im_end|>", special=True),
            ]
        }
    )
    tokenizer.bos_token, tokenizer.eos_token = None, "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def llama_tokenizer(texts: Sequence[str], vocabulary: int = 400) -> PreTrainedTokenizerBase:
    """As Llama 2 has it: spaces as a letter, one of them put before every text; a bos token; no padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Llama 2 does not part words from punctuation, but has next to no token with both.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(Regex(r"[^\w▁ü]|\n"), "isolated")]
    )
    tokenizer.decoder = token_decoders.Sequence(
        [token_decoders.Replace("▁", " "), token_decoders.ByteFallback(), token_decoders.Fuse()]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + 256,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def save_pretrained_model(folder: Path, texts: Sequence[str]) -> Path:
    """A folder as the hub has Qwen2.5: bf16 weights, a tied head, grouped heads, more embeddings than tokens."""
    tokenizer = chat_tokenizer(texts)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
