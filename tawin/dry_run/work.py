"""The FLOPs of what a run repeats, by arithmetic: products with the weights, attention's own left out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..catalog.catalog import Catalog
from ..config import Config
from .plan import Plan

TRIED = 0.2  # seconds of products from which the machine's speed is taken


@dataclass(frozen=True)
class Work:
    """FLOPs of one sequence, prompt or user."""

    sft_sequence: float
    grpo_prompt_without_hit: float
    """A rollout, and with a KL term the policy too."""
    grpo_prompt_with_hit: float
    evaluated_user: float


def work_of(model: Any, catalog: Catalog, plan: Plan, config: Config) -> Work:
    """Two FLOPs a weight and token, six where it is trained. Forced tokens are counted as if they were run."""
    embeddings = {id(part.weight): part.weight.numel() for part in (model.get_input_embeddings(),)}
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if id(p) not in {*embeddings, id(head)})
    item = float((catalog.token_ids >= 0).sum() / catalog.num_items)  # tokens
    prompt = plan.grpo.prompt_tokens / max(1, plan.grpo.prompts)

    def search(width: int) -> float:
        run = width * (item - 1)
        return 2 * (body * (prompt + run) + head.numel() * (1 + run))

    completions = config.grpo.completions(catalog.num_sequences)
    forward = search(completions)  # the policy runs the tokens that the rollout ran: no last one
    rollout = 0.0 if config.grpo.negatives == "random" else search(completions)
    hit = rollout + (4 if config.grpo.beta > 0 else 3) * forward
    sft = plan.sft.tokens / max(1, plan.sft.sequences)
    return Work(
        6 * (body + head.numel()) * sft,
        hit if config.grpo.beta > 0 or config.grpo.negatives == "random" else rollout,
        hit,
        search(min(config.evaluation.beam_width, catalog.num_sequences)),
    )


@torch.no_grad()
def flops_a_second(model: nn.Module, device: torch.device, *, bf16: bool) -> float:
    """Speed of this machine's products at the size of the model's own, measured for `TRIED` seconds."""
    weights = [p for p in model.parameters() if p.dim() == 2]
    rows, columns = max((p.shape for p in weights), key=lambda shape: min(shape))
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (
        torch.ones(256, columns, device=device, dtype=dtype),
        torch.ones(columns, rows, device=device, dtype=dtype),
    )
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < TRIED:
        (left @ right)[0, 0].item()  # waits for a GPU
        count += 1
        if count == 1:  # the first one starts libraries
            started = time.perf_counter()
    return 2 * 256 * rows * columns * (count - 1) / (time.perf_counter() - started)
