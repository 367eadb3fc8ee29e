"""Log-probabilities of given tokens from hidden states: LM head, log-softmax and gather in one op.

The [tokens, vocabulary] logits are never held all at once.
"""

from __future__ import annotations

import torch

from . import reference
from .arguments import Impl, require_implementation


def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor:
    """log softmax((hidden @ lm_head_weight.T + bias) / temperature) at token_ids.

    hidden: [*N, H] fp32, bf16, fp16 (fp64 too on the CPU), N any leading shape.
    lm_head_weight: [V, H], dtype of hidden. bias: [V], dtype of hidden, or None.
    token_ids: int64 [*N] in [0, V); -100 gives 0 and no gradient, and its hidden state is not read.
    temperature: logits are divided by it, > 0.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns fp32 [*N] (fp64 for fp64), natural log. Differentiable in hidden, lm_head_weight and bias.
    Inside an autocast region the forward pass still accumulates in fp32. Call backward outside of the region: inside,
    PyTorch runs its matrix products in the region's lower precision.
    Raises TypeError or ValueError naming the argument.
    """
    require_implementation("linear_log_probs", impl)
    return reference.linear_log_probs(
        hidden, lm_head_weight, token_ids, temperature=temperature, bias=bias, check_values=check_values
    )
