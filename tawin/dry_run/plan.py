"""What a run is made of, counted before it starts: steps, sequences, tokens, evaluations, bytes.

Arithmetic alone; nothing is run. A number is exact, or counted on a sample, or an estimate, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import Config
from ..data.dataset import Examples, Split
from ..data.ragged import Ragged
from ..train.sft import sft_steps, sft_windows

SAMPLE = 4096  # prompts and sequences whose tokens are counted; of more, the mean is that of a sample

Known = Literal["exact", "sample", "estimate"]


@dataclass(frozen=True)
class StagePlan:
    """What a training stage does."""

    steps: int
    epochs: float
    evaluations: int
    """On valid, while training."""
    sequences: int
    """Of a step: windows of users' sequences (SFT), completions (GRPO)."""
    tokens: float
    """Of these: with their history (SFT), of the completions alone (GRPO)."""
    prompts: int = 0
    prompt_tokens: float = 0.0
    known: Known = "exact"
    """How the tokens are known."""


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    sft: StagePlan
    grpo: StagePlan
    valid_users: int
    """Of each evaluation while training."""
    final_users: int
    """Of valid and test together, in the evaluation of a stage's best model."""


def make_plan(catalog: Catalog, split: Split, config: Config) -> Plan:
    """Count what a run with this config does."""
    evaluation = config.evaluation

    def users(examples: Examples, limit: int | None) -> int:
        return min(len(examples), limit if limit is not None else len(examples))

    return Plan(
        _plan_sft(catalog, split, config),
        _plan_grpo(catalog, split.rl, config),
        users(split.valid, evaluation.valid_users),
        users(split.valid, evaluation.test_users) + users(split.test, evaluation.test_users),
    )


def _plan_sft(catalog: Catalog, split: Split, config: Config) -> StagePlan:
    sft = config.sft
    windows, first_targets = sft_windows(catalog, split, config)
    steps_an_epoch, steps = sft_steps(len(windows), sft)
    epochs = steps / steps_an_epoch if steps_an_epoch else 0.0
    whole = int(epochs)
    # Behind every so many epochs, and behind the last step.
    ends_between = steps > 0 and (epochs > whole or whole % sft.evaluate_every > 0)
    evaluations = whole // sft.evaluate_every + ends_between
    tokens, known = _mean_tokens(windows, lambda rows: catalog.encode_windows(windows.take(rows), first_targets[rows]))
    sequences = min(sft.batch_size * sft.gradient_accumulation, len(windows))
    return StagePlan(steps, epochs, max(1, evaluations), sequences, sequences * tokens, known=known)


def _plan_grpo(catalog: Catalog, prompts: Examples, config: Config) -> StagePlan:
    grpo = config.grpo
    completions = grpo.completions(catalog.num_sequences)
    histories = Ragged.of(prompts.histories)
    prompt_tokens, known = _mean_tokens(histories, lambda rows: catalog.encode_histories(histories.take(rows)))
    size = grpo.batch_size * grpo.gradient_accumulation
    item_tokens = float((catalog.token_ids >= 0).sum() / catalog.num_items)
    if known == "exact" and int((catalog.token_ids >= 0).sum(1).unique().numel()) > 1:
        known = "estimate"  # which items come is not known
    steps = grpo.steps_on(len(prompts))
    evaluations = 1 + steps // grpo.evaluate_every + (steps % grpo.evaluate_every > 0)
    return StagePlan(
        steps,
        steps * size / max(1, len(prompts)),
        evaluations,
        size * completions,
        size * completions * item_tokens,
        size,
        size * prompt_tokens,
        known,
    )


def _mean_tokens(sequences: Ragged, encode: Callable[[np.ndarray], Sequence[Tensor]]) -> tuple[float, Known]:
    """Mean tokens of what `encode` makes of rows; its second tensor is the attention mask."""
    if len(sequences) == 0:
        return 0.0, "exact"
    rows = np.arange(len(sequences))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    mask = encode(rows)[1]
    return float(mask.sum()) / len(rows), "exact" if len(rows) == len(sequences) else "sample"


@dataclass(frozen=True)
class Bytes:
    """Memory that something takes."""

    what: str
    sft: float
    grpo: float
    known: Known


def memory(model: nn.Module, catalog: Catalog, plan: Plan, config: Config, *, bf16: bool) -> list[Bytes]:
    """What weights, their gradients and moments, caches and activations take, of one process without sharding.

    bf16: forwards run under autocast, as on a GPU.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = [_moment_bytes(section.optimizer) * trained for section in (config.sft, config.grpo)]
    known: Known = "exact" if {config.sft.optimizer, config.grpo.optimizer} == {"adamw"} else "estimate"
    size = 2 if bf16 else 4
    shape = _shape(model)
    appended = catalog.trie.max_depth - 1  # tokens of a beam that are run: the last one is not
    completions = config.grpo.completions(catalog.num_sequences)
    beams = min(config.evaluation.beam_width, catalog.num_sequences)
    rolled_out = config.grpo.batch_size * (_tokens_each(plan.grpo) + completions * appended)
    searched = config.evaluation.batch_size * (_tokens_each(plan.grpo) + beams * appended)
    cache = size * shape.layers * 2 * shape.kv_size
    # A GRPO forward has a prompt once and the tokens of its group; at most all groups have a gradient.
    grpo_tokens = (plan.grpo.prompt_tokens + plan.grpo.tokens) / config.grpo.gradient_accumulation
    sft_tokens = plan.sft.tokens / config.sft.gradient_accumulation
    activation = size * shape.activations(checkpointed=config.policy.checkpoint_activations)
    return [
        Bytes("weights, fp32", 4 * parameters, 4 * parameters, "exact"),
        Bytes("gradients, fp32", 4 * trained, 4 * trained, "exact"),
        Bytes("optimizer's moments", moments[0], moments[1], known),
        Bytes("reference model, fp32", 0, 4 * parameters * config.needs_reference, "exact"),
        Bytes("cache of evaluation or rollout", searched * cache, max(rolled_out, searched) * cache, "estimate"),
        Bytes("activations of a forward", sft_tokens * activation, grpo_tokens * activation, "estimate"),
    ]


def _moment_bytes(optimizer: str) -> int:
    return 8 if optimizer == "adamw" else 2


def _tokens_each(stage: StagePlan) -> float:
    return stage.prompt_tokens / max(1, stage.prompts)


@dataclass(frozen=True)
class _Shape:
    """Sizes of a decoder, as its config has them."""

    layers: int
    hidden: int
    kv_size: int
    """Of a layer's keys, or values, of a token."""
    intermediate: int

    def activations(self, *, checkpointed: bool) -> int:
        """Numbers a token that a backward pass needs, roughly: what goes into each product, norm and activation."""
        layer = 8 * self.hidden + 2 * self.kv_size + 4 * self.intermediate
        return self.layers * self.hidden + layer if checkpointed else self.layers * layer


def _shape(model: Any) -> _Shape:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return _Shape(config.num_hidden_layers, config.hidden_size, kv_heads * head_size, config.intermediate_size)
