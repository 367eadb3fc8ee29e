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
    _, group, length = token_ids.shape
    completions = token_ids.flatten(0, 1)  # [B * G, L]
    is_token = completions >= 0
    sequences = torch.cat((input_ids.repeat_interleave(group, 0), completions.clamp_min(0)), dim=1)  # [B * G, P + L]
    mask = torch.cat((attention_mask.repeat_interleave(group, 0), is_token.to(attention_mask.dtype)), dim=1)
    logits = model(input_ids=sequences, attention_mask=mask, logits_to_keep=length + 1, use_cache=False).logits[
        :, :-1
    ]  # [B * G, L, V]
    log_probs = logits.log_softmax(-1).gather(2, completions.clamp_min(0)[..., None])[..., 0]
    return log_probs.masked_fill(~is_token, 0.0).view(token_ids.shape)
