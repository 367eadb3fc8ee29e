"""Forwards of a shared-prefix trainer of today: each prompt once, its G completions behind it in one sequence.

The idea of PrefixGrouper and of Unsloth's trainer: a completion's tokens see their prompt and their own completion, and
their positions go on from the prompt's. All G x L tokens are run: completions that begin alike share nothing but the
prompt. The mask is given to the model's own sdpa attention, where Unsloth has FlexAttention, which has no backward on
the CPU; at a few hundred tokens attention is a small part of the work. The LM head gets a row for each token, by TRL
1.16's chunked log-probs or, where TRL is not installed, by a full log-softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from .grpo_step import PeerForward
from .log_prob_heads import LogProbHead


def shared_prefix_forward(head: LogProbHead) -> PeerForward:
    """head: "trl" of `log_prob_heads`, or `full_softmax_head`."""

    def log_probs(model: Any, states: Tensor, token_ids: Tensor) -> Tensor:
        is_token = token_ids >= 0
        scored = head(states[is_token], model.get_output_embeddings().weight, token_ids[is_token], 1.0)
        return scored.new_zeros(is_token.shape).masked_scatter(is_token, scored)

    return PeerForward(run=shared_prefix_states, log_probs=log_probs)


def full_softmax_head(hidden: Tensor, weight: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Log-probs [T] of states [T, H], in fp32 from logits [T, V]."""
    log_probs = (linear(hidden, weight).float() / temperature).log_softmax(-1)
    return log_probs.gather(-1, token_ids[:, None])[:, 0]


def shared_prefix_states(model: Any, input_ids: Tensor, attention_mask: Tensor, token_ids: Tensor) -> Tensor:
    """The state that predicts each completion token, [B, G, L, H], differentiable; of no meaning at padding.

    model: a transformers causal LM with sdpa attention; input_ids, attention_mask: int64 [B, P], left-padded;
    token_ids: int64 [B, G, L], -100 = padding at the end.
    """
    batch, prompt_length = input_ids.shape
    _, group, length = token_ids.shape
    completions = token_ids.flatten(1)  # [B, G * L]
    places = torch.arange(group * length, device=input_ids.device)
    same_completion = places[:, None] // length == places // length
    own = same_completion & (places[:, None] >= places)  # bool [G * L, G * L]; padding sees itself, nobody sees it

    is_prompt = attention_mask.bool()
    causal = torch.ones(prompt_length, prompt_length, dtype=torch.bool, device=input_ids.device).tril()
    itself = torch.eye(prompt_length, dtype=torch.bool, device=input_ids.device)  # no row of a softmax may be empty
    among_prompt = (causal & is_prompt[:, None]) | itself
    visible = torch.cat(
        (
            pad(among_prompt, (0, group * length)),
            torch.cat((is_prompt[:, None].expand(-1, len(own), -1), own.expand(batch, -1, -1)), dim=2),
        ),
        dim=1,
    )  # bool [B, P + G * L, P + G * L]
    prompt_positions = (is_prompt.long().cumsum(-1) - 1).clamp_min(0)
    positions = torch.cat((prompt_positions, is_prompt.sum(-1, keepdim=True) + places % length), dim=1)

    hidden = model.get_decoder()(
        input_ids=torch.cat((input_ids, completions.clamp_min(0)), dim=1),
        attention_mask=visible[:, None],
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state  # [B, P + G * L, H]
    first = hidden[:, prompt_length - 1, None, None].expand(-1, group, 1, -1)  # all begin with the prompt's last state
    later = hidden[:, prompt_length:].unflatten(1, (group, length))[:, :, :-1]
    return torch.cat((first, later), dim=2)
