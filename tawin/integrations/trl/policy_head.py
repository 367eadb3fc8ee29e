"""What a trainer's model must be, and a forward of it that gives log-probs of tokens instead of logits.

The log-probs are computed within the model's own forward, so that whatever wraps it (DDP, autocast, PEFT, activation
checkpointing) sees an ordinary call. Knows nothing of groups, rewards or losses.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from tawin_kernels import linear_log_probs
from torch import Tensor, nn

from ...model.backbone import backbone


def check_model(trainer: Any) -> None:
    """ValueError by name for a trainer's model whose scores would be wrong: see `backbone`, and what is below."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("args: expected one process or DDP, got FSDP or DeepSpeed, which split weights; not supported")
    peft_configs = getattr(trainer.model, "peft_config", {})
    virtual = [name for name, config in peft_configs.items() if config.is_prompt_learning]
    if virtual:
        raise ValueError(f"model: expected LoRA or full weights, got virtual tokens (PEFT {virtual}); not supported")
    backbone(trainer.model)


def score_tokens_in_forward(model: nn.Module) -> None:
    """Let the forward of a causal LM (or of one inside of PEFT) take `scored_token_ids`; without them it is as it was.

    scored_token_ids: int64 [N, L], the last L tokens of each row of input_ids, -100 = not wanted. The forward then
    returns log p at `score_temperature` and entropy of each, fp32 [N, L], 0 where not wanted. Only the states that
    predict these tokens reach the LM head; there is no [tokens, vocabulary] tensor.
    """
    wrapped: Any = model
    causal_lm = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped  # peft
    parts = backbone(model)
    original = causal_lm.forward

    @functools.wraps(original)
    def forward(
        _self: nn.Module,
        *arguments: Any,
        scored_token_ids: Tensor | None = None,
        score_temperature: float = 1.0,
        **options: Any,
    ) -> Any:
        if scored_token_ids is None:
            return original(*arguments, **options)
        options.pop("labels", None)  # PEFT passes it on
        hidden = parts.decoder(*arguments, use_cache=False, **options).last_hidden_state
        hidden = hidden[:, -scored_token_ids.shape[1] - 1 : -1]  # [N, L, H]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):  # as a linear layer does: norms may give fp32
            hidden = hidden.to(torch.get_autocast_dtype(device))
        weight, bias = parts.head_in(hidden.dtype)
        return linear_log_probs(
            hidden, weight, scored_token_ids, temperature=score_temperature, bias=bias, with_entropy=True
        )

    causal_lm.forward = types.MethodType(forward, causal_lm)
