"""Batches as verl's trainers hold them, and the advantages that each group of theirs gets alone."""

from __future__ import annotations

from typing import Any

import torch
from tawin_kernels import group_advantages


def responses(sizes: list[int], *, seed: int, padding: int = 0, T: int = 5) -> tuple[dict[str, torch.Tensor], list]:
    """The tensors [N, T] and uids of a shuffled batch of groups of these sizes and `padding` rows without a token.

    The reward of a response, 1 for three in ten, stands at its last token.
    """
    generator = torch.Generator().manual_seed(seed)
    N = sum(sizes) + padding
    uids: list[Any] = [f"group-{i}" for i, size in enumerate(sizes) for _ in range(size)] + ["pad"] * padding
    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    lengths[sum(sizes) :] = 0
    mask = torch.arange(T) < lengths[:, None]
    hits = torch.rand(N, generator=generator) < 0.3
    batch = {
        "token_level_rewards": torch.zeros(N, T).index_put((torch.arange(N), (lengths - 1).clamp(min=0)), hits.float()),
        "response_mask": mask.long(),
        "old_log_probs": torch.randn(N, T, generator=generator).masked_fill(~mask, 0.0),
        "rollout_log_probs": torch.randn(N, T, generator=generator).masked_fill(~mask, 0.0),
    }
    order = torch.randperm(N, generator=generator)
    return {name: tensor[order] for name, tensor in batch.items()}, [uids[i] for i in order]


def group_by_group(
    batch: dict[str, torch.Tensor], uids: list, log_probs: str = "old_log_probs", **options: Any
) -> torch.Tensor:
    """[N, T]: `group_advantages` of one group after another, spread over the responses' tokens."""
    mask = batch["response_mask"].bool()
    rewards = batch["token_level_rewards"].sum(-1)
    scores = batch[log_probs].masked_fill(~mask, 0.0).double().sum(-1)
    advantages = torch.zeros(len(uids))
    for uid in set(uids):
        rows = torch.tensor([i for i, other in enumerate(uids) if other == uid and mask[i].any()], dtype=torch.int64)
        if len(rows):
            advantages[rows] = group_advantages(rewards[rows][None], scores[rows][None], **options)[0]
    return advantages[:, None] * mask
