"""Log-probs of completions as TRL, ReRe and MiniOneRec compute them: the prompt is repeated before every completion.

Full logits [rows, tokens, vocabulary], then log-softmax, then gather. The LM head runs on the completions only
(`logits_to_keep`), as it does there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def repeated_prompt_log_probs(model: Any, input_ids: Tensor, attention_mask: Tensor, token_ids: Tensor) -> Tensor:
    """Log p of every completion token, differentiable.

    Args:
        model: a transformers causal LM.
        input_ids, attention_mask: int64 [B, P], left-padded prompts.
        token_ids: int64 [B, G, L], completions; -100 = padding at the end.

    Returns:
        [B, G, L] in the dtype of the model's logits, 0 at padding.
    """
    return gathered_log_probs(repeated_prompt_logits(model, input_ids, attention_mask, token_ids), token_ids)


def repeated_prompt_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, token_ids: Tensor) -> Tensor:
    """The logits that predict every completion token: [B, G, L, V]."""
    _, group, length = token_ids.shape
    completions = token_ids.flatten(0, 1)  # [B * G, L]
    is_token = completions >= 0
    sequences = torch.cat((input_ids.repeat_interleave(group, 0), completions.clamp_min(0)), dim=1)  # [B * G, P + L]
    mask = torch.cat((attention_mask.repeat_interleave(group, 0), is_token.to(attention_mask.dtype)), dim=1)
    logits = model(input_ids=sequences, attention_mask=mask, logits_to_keep=length + 1, use_cache=False).logits
    return logits[:, :-1].unflatten(0, token_ids.shape[:2])


def gathered_log_probs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """The log-softmax of all logits [B, G, L, V], of which one is kept a token: [B, G, L], 0 at padding."""
    log_probs = logits.log_softmax(-1).gather(-1, token_ids.clamp_min(0)[..., None])[..., 0]
    return log_probs.masked_fill(token_ids < 0, 0.0)
