"""A GRPO step of a recommender as users have it today, around one peer's way to run its forwards.

What `rere_step` and `shared_prefix_step` have in common: rollout by `generate` with a prefix look-up in Python for
every beam, rewards by comparing one completion after another, reference log-probs, the policy's log-probs, the clipped
loss with its KL in plain PyTorch, backward, clip, AdamW as transformers' Trainer has it (fused). Every group is run,
those without a gradient too. Written anew. What is given to both sides: encoded prompts from the catalogue, advantages
from `tawin_kernels.group_advantages`. Only loss type "grpo" with one update a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tawin_kernels import group_advantages
from torch import Tensor, nn

from tawin.config import GRPOConfig
from tawin.model.policy import evaluating
from tawin.run.phases import phase
from tawin.train.engine import MAX_GRAD_NORM

from .generate import PeerSequences, PrefixTable, generate_sequences


@dataclass(frozen=True)
class PeerForward:
    """A peer's forward in two parts, as the phases of a step have them."""

    run: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    """Model, input_ids and attention_mask [B, P], token_ids [B, G, L] -> whatever `log_probs` starts from."""
    log_probs: Callable[[Any, Tensor, Tensor], Tensor]
    """Model, what `run` gave, token_ids -> log-probs [B, G, L], 0 at padding."""


@dataclass(frozen=True)
class PeerGroups:
    """A batch of groups: what was generated and what it earned."""

    sequences: PeerSequences
    rewards: Tensor  # fp32 [B, G]
    loss: float


@dataclass(frozen=True)
class PeerStep:
    """A peer's training step. prompts_at_once: of one forward and backward; more are gradient accumulation."""

    model: nn.Module
    reference: nn.Module | None  # frozen, in eval mode; needed where config.beta > 0
    forward: PeerForward
    table: PrefixTable
    config: GRPOConfig
    optimizer: torch.optim.Optimizer
    prompts_at_once: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def backward(self, input_ids: Tensor, attention_mask: Tensor, targets: list[tuple[int, ...]]) -> PeerGroups:
        """Rollout, rewards, loss and backward of a batch; gradients are left on the parameters.

        input_ids, attention_mask: int64 [B, P], left-padded; targets: the tokens of each prompt's next item.
        """
        config = self.config
        with evaluating(self.model), prefill_then_decode(self.model), self.autocast():
            found = generate_sequences(self.model, input_ids, attention_mask, self.table, config.group_size)
        valid = (found.token_ids >= 0).any(-1)  # bool [B, G]
        with phase("reward"):
            rewards = compared_rewards(found.token_ids, targets)
            advantages = group_advantages(
                rewards,
                found.scores,
                tawin=config.tawin.kernel_options() if config.tawin.enabled else None,
                normalize_std=config.normalize_std,
                valid=valid,
            )
        sequences = int(valid.sum())
        total = 0.0
        for first in range(0, len(input_ids), self.prompts_at_once):
            part = slice(first, first + self.prompts_at_once)
            batch = (input_ids[part], attention_mask[part], found.token_ids[part])
            reference = None
            if config.beta > 0:
                with phase("reference"), torch.no_grad(), self.autocast():
                    forwarded = self.forward.run(self.reference, *batch)
                    reference = self.forward.log_probs(self.reference, forwarded, batch[2])
            with self.autocast():
                with phase("policy_forward"):
                    forwarded = self.forward.run(self.model, *batch)
                with phase("loss"):
                    log_probs = self.forward.log_probs(self.model, forwarded, batch[2])
                    loss = grpo_sum(log_probs, batch[2] >= 0, advantages[part], reference, config) / sequences
            with phase("backward"):
                loss.backward()
            total += float(loss.detach())
        return PeerGroups(found, rewards, total)

    def update(self) -> float:
        """Clip, step, forget the gradients; the norm before clipping."""
        with phase("optimizer"):
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            return float(norm)


def users_adamw(model: nn.Module, config: GRPOConfig) -> torch.optim.AdamW:
    """Trainer's default, "adamw_torch_fused": weight decay for matrices alone, and ours' betas."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def compared_rewards(token_ids: Tensor, targets: list[tuple[int, ...]]) -> Tensor:
    """1 where a completion is its prompt's target, else 0, one after another in Python: fp32 [B, G].

    ReRe compares the completions' text; tokens are compared faster.
    """
    rewards = [
        [float(tuple(token for token in tokens if token >= 0) == target) for tokens in group]
        for group, target in zip(token_ids.tolist(), targets, strict=True)
    ]
    return torch.tensor(rewards, device=token_ids.device)


def grpo_sum(
    log_probs: Tensor, mask: Tensor, advantages: Tensor, reference: Tensor | None, config: GRPOConfig
) -> Tensor:
    """The sum over completions of their mean token loss, KL included; log_probs, mask and reference [B, G, L]."""
    ratio = (log_probs - log_probs.detach()).exp()
    clipped = ratio.clamp(1 - config.epsilon_low, 1 + config.epsilon_high)
    losses = -torch.minimum(ratio * advantages[..., None], clipped * advantages[..., None])
    if reference is not None:
        gap = reference - log_probs
        losses = losses + config.beta * (gap.exp() - gap - 1)
    return ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum()


@contextmanager
def prefill_then_decode(model: nn.Module) -> Iterator[None]:
    """Within it the phase is prefill up to the end of the model's first forward, then decode."""
    with ExitStack() as current:
        current.enter_context(phase("prefill"))

        def begin_decode(*_: Any) -> None:
            hook.remove()
            current.close()
            current.enter_context(phase("decode"))

        hook = model.register_forward_hook(begin_decode)
        try:
            yield
        finally:
            hook.remove()
