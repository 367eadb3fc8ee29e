"""Forwards as ReRe and MiniOneRec run them, policy's and reference's alike: the prompt repeated before each completion.

A row of prompt and completion for each of a group's completions, logits of every completion token over the whole
vocabulary, log-softmax, gather. Around it `grpo_step`, which has what else their trainers do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .grpo_step import PeerForward
from .repeated_prompt import gathered_log_probs, repeated_prompt_logits


def rere_forward() -> PeerForward:
    return PeerForward(run=repeated_prompt_logits, log_probs=_log_probs)


def _log_probs(_model: Any, logits: Tensor, token_ids: Tensor) -> Tensor:
    """Logits [B, G, L, V], in fp32: accelerate hands trainers the outputs of autocast so."""
    return gathered_log_probs(logits.float(), token_ids)
