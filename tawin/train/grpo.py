"""GRPO with TAWin: a rollout, rewards, and one or more updates a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..catalog.encoding import IGNORED
from ..config import Config, GRPOConfig
from ..data.dataset import Examples, Split
from ..evaluate.ranking import decided
from ..model.policy import evaluating
from ..rl.objective import Groups, completion_log_probs, group_loss, loss_denominator, may_share_prompts, roll_out
from ..rl.rebalance import balanced
from ..run.checkpoint import Progress
from ..run.folder import RunFolder
from ..run.processes import Processes, is_sharded
from .engine import Stage
from .findings import count_wrong, look_into_groups
from .loop import train_steps
from .sft import sft_negatives, window_loss

Reference = Callable[[Groups], Tensor]


def train_grpo(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> Progress:
    """Group-relative policy optimisation with TAWin weights; the best model, or the start, is in checkpoints/grpo.

    `reference` is the frozen model of the KL term. None with beta > 0: the peft model with its adapters switched off.
    """
    steps = config.grpo.steps_on(len(split.rl))
    grpo = replace(config.grpo, steps=steps)
    config = decided(replace(config, grpo=grpo), split)
    stage = Stage.start("grpo", accelerator, model, tokenizer, grpo, steps, run, config.guards, config.checkpoints)
    frozen = reference_log_probs(stage, reference) if grpo.beta > 0 else None

    def step() -> dict[str, float]:
        now = grpo.at_step(stage.progress.step).tawin
        figures = grpo_step(stage, catalog, split.rl, config, frozen)
        return {**figures, **({"anchor": now.anchor} if grpo.tawin.moves else {})}

    return train_steps(
        stage, catalog, split.valid, config, step, steps, grpo.evaluate_every, shown=("reward", "live_share")
    )


def grpo_step(
    stage: Stage, catalog: Catalog, prompts: Examples, config: Config, reference: Reference | None
) -> dict[str, float]:
    """One step on its batch of the `prompts`: a rollout and `config.grpo.updates` updates on it.

    Returns the figures of the step; loss, KL, clip fraction and gradient norm are those of its last update.
    """
    grpo = config.grpo
    size = grpo.batch_size * grpo.gradient_accumulation
    rows = prompt_rows(len(prompts), config.seed, stage.progress.step, size)
    rate = stage.scheduler.get_last_lr()[0]
    rollout = _roll_out_all(stage, catalog, prompts.take(rows), config)
    look = partial(look_into_groups, parts=rollout.parts, reference=reference, config=grpo)
    if rollout.wrong:
        stage.refuse(rollout.wrong, partial(look, parts=rollout.all_groups))
        return rollout.figures
    old_log_probs: list[Tensor] | None = None
    for update in range(grpo.updates):
        figures, log_probs = _backward(stage, rollout, config.seed, reference, old_log_probs)
        if update == 0:
            old_log_probs = log_probs
        checked = {"loss": figures["loss"], "KL": figures["kl"]}
        norm = stage.update(ends_step=update == grpo.updates - 1, figures=checked, look=look)
        if math.isnan(norm):  # skipped, and with it what is left of the step
            break
    return {**rollout.figures, **figures, "grad_norm": norm, "learning_rate": rate}


def grpo_backward(
    stage: Stage, catalog: Catalog, chosen: Examples, config: Config, reference: Reference | None
) -> dict[str, float]:
    """Rollout, rewards, loss and backward of one step; the gradients are left on the parameters.

    Args:
        chosen: the prompts of the step, of all processes; `config.grpo.batch_size` of them share a forward.
        reference: log-probs under the reference model, where `config.grpo.beta` is above 0.

    Returns:
        The step's figures, over all processes: reward, hit_share, live_share, loss, kl, clip_fraction.
    """
    rollout = _roll_out_all(stage, catalog, chosen, config)
    return {**rollout.figures, **_backward(stage, rollout, config.seed, reference, None)[0]}


@dataclass(frozen=True)
class _Rollout:
    """What the updates of a step train on: this process's part, and what is known of the whole."""

    parts: list[Groups]
    """What goes through the policy together."""
    tokens: list[Tensor]
    """Tokens that count in each part: none where a group is run for company."""
    denominator: float
    config: GRPOConfig
    figures: dict[str, float]
    wrong: dict[str, float]
    """What of the rollout is not finite, the same on all processes; it lies in some of `all_groups`."""
    all_groups: list[Groups]
    """Empty where all is finite: they hold the rollout's caches."""
    targets: list[Callable[[nn.Module], tuple[Tensor]]]
    """Of a model: the weighed cross-entropy of this process's targets, a forward each; empty where it has no weight."""


def _roll_out_all(stage: Stage, catalog: Catalog, chosen: Examples, config: Config) -> _Rollout:
    """The groups of a step, all processes sharing the prompts.

    Groups without a gradient are left out, the others are dealt out evenly. A process that gets none runs one of its
    own without its rewards, whose gradient is zero: engines want all processes in a forward or none.
    """
    grpo, processes, device = config.grpo.at_step(stage.progress.step), stage.processes, stage.processes.device
    stage.model.train()
    seed = np.random.SeedSequence((config.seed, 2, stage.progress.step)).generate_state(1)[0]
    generator = torch.Generator(device).manual_seed(int(seed))
    rows, size = np.arange(len(chosen)), grpo.batch_size
    together = [chosen.take(rows[start : start + size]) for start in range(0, len(chosen), size)]
    # The weights that FSDP2 gathers for a rollout are gone when its backward pass would come.
    shares = not is_sharded(stage.engine) and may_share_prompts(stage.model, grpo)
    with stage.accelerator.autocast():
        batches = stage.infer(
            lambda model: [
                _roll_out(model, catalog, examples, grpo, generator, processes, shares) for examples in together
            ]
        )

    sequences = min(grpo.group_size, catalog.num_sequences)
    wrong, denominator, reward, hits, prompts, *live = processes.sums(
        count_wrong(batches, sequences),
        loss_denominator(batches, grpo.loss_type),
        sum(groups.rewards.sum(dtype=torch.float64) for groups in batches),
        sum(groups.hits.sum() for groups in batches),
        sum(len(groups.rewards) for groups in batches),
        *(groups.live.sum() for groups in batches),
    )
    balances = grpo.beta == 0 and any(live)
    dealt = balanced(batches, processes) if balances else batches
    runs = [index for index in range(len(batches)) if grpo.beta > 0 or live[index]]
    first = torch.zeros(1, dtype=torch.int64, device=device)
    parts = [
        dealt[index] if len(dealt[index].rewards) else batches[index].take(first).without_rewards() for index in runs
    ]
    figures = {
        "reward": reward / (prompts * grpo.group_size),
        "hit_share": hits / prompts,
        "live_share": sum(live) / prompts,
    }
    tokens = [dealt[index].mask.sum() for index in runs]
    nonfinite = {"sum of rewards and scores": math.nan} if wrong else {}
    return _Rollout(
        parts,
        tokens,
        denominator,
        grpo,
        figures,
        nonfinite,
        batches if wrong else [],
        _target_losses(stage, catalog, together, config) if grpo.nll_weight > 0 else [],
    )


def _target_losses(
    stage: Stage, catalog: Catalog, together: list[Examples], config: Config
) -> list[Callable[[nn.Module], tuple[Tensor]]]:
    """The cross-entropy of the prompts' first targets, as SFT has it, times `grpo.nll_weight`; a forward a batch."""
    batches = []
    for examples in together:
        share = stage.processes.share(len(examples))
        own = examples.take(np.arange(len(examples))[share] if len(range(len(examples))[share]) else [0])
        windows = [np.append(history, target) for history, target in zip(own.histories, own.targets, strict=True)]
        lengths = np.array([len(window) - 1 for window in windows], dtype=np.int32)
        input_ids, attention_mask, labels = catalog.encode_windows(windows, lengths)
        is_own = len(range(len(examples))[share]) > 0  # a process that has no prompt runs one for company
        batches.append((input_ids, attention_mask, labels if is_own else torch.full_like(labels, IGNORED)))
    (tokens,) = stage.processes.sums(sum(int((labels >= 0).sum()) for _, _, labels in batches))
    weighed, negatives = tokens / config.grpo.nll_weight, sft_negatives(catalog, config)
    return [window_loss(batch, weighed, stage.processes.device, config.attention, negatives) for batch in batches]


def _backward(
    stage: Stage,
    rollout: _Rollout,
    seed: int,
    reference: Reference | None,
    old_log_probs: list[Tensor] | None,
) -> tuple[dict[str, float], list[Tensor]]:
    """Loss and backward of an update; also gives back the log-probs of each part, [B, G, L].

    All updates of a step drop the same: the ratio is that of the policies, not of the dropout's masks.

    Args:
        old_log_probs: those of the step's first update; None in that one, whose ratios are 1.
    """
    stage.seed(seed)
    # The groups' loss; over tokens: kl, clipped, tokens; the weighed cross-entropy of targets.
    totals = torch.zeros(5, dtype=torch.float64, device=stage.processes.device)
    log_probs, last = [], len(rollout.parts) + len(rollout.targets) - 1
    for index, (groups, tokens) in enumerate(zip(rollout.parts, rollout.tokens, strict=True)):
        old = None if old_log_probs is None else old_log_probs[index]
        work = _loss_of(groups, reference, rollout.config, rollout.denominator, old)
        loss, kl, clip_fraction, found = stage.backward(work, is_last=index == last)
        totals[:4] += torch.stack([loss.double(), kl * tokens, clip_fraction * tokens, tokens.double()])
        log_probs.append(found)
    for index, target_loss in enumerate(rollout.targets, len(rollout.parts)):
        totals[4] += stage.backward(target_loss, is_last=index == last)[0]
    loss_sum, kl_sum, clipped, tokens_seen, nll = stage.processes.sums(*totals)
    figures = {
        "loss": loss_sum + nll,
        "kl": kl_sum / tokens_seen if tokens_seen else 0.0,
        "clip_fraction": clipped / tokens_seen if tokens_seen else 0.0,
        **({"nll": nll / rollout.config.nll_weight} if rollout.targets else {}),
    }
    return figures, log_probs


def _roll_out(
    model: nn.Module,
    catalog: Catalog,
    examples: Examples,
    config: GRPOConfig,
    generator: torch.Generator,
    processes: Processes,
    shares_prompts: bool,
) -> Groups:
    """The groups of this process's share of the examples of one forward."""
    part = processes.share(len(examples))
    own = examples.take(np.arange(len(examples))[part])
    input_ids, attention_mask = catalog.encode_histories(own.histories)
    groups = roll_out(
        model,
        catalog,
        input_ids.to(processes.device),
        attention_mask.to(processes.device),
        torch.as_tensor(own.all_targets(), device=processes.device),
        config,
        generator,
        shares_prompts=shares_prompts,
        part=part,
        whole=len(examples),
    )
    return replace(groups, users=torch.as_tensor(own.user_ids, device=processes.device))


def _loss_of(
    groups: Groups,
    reference: Reference | None,
    config: GRPOConfig,
    denominator: float,
    old_log_probs: Tensor | None,
) -> Callable[[nn.Module], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of a model: loss, KL, clip fraction and log-probs [B, G, L] of the groups."""

    def loss(model: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = group_loss(model, reference, groups, config, denominator, old_log_probs)
        return found.loss, found.kl, found.clip_fraction, found.log_probs

    return loss


def prompt_rows(prompts: int, seed: int, batch: int, size: int) -> np.ndarray:
    """Rows of batch number `batch` in the endless sequence of shuffled epochs."""
    positions = np.arange(batch * size, (batch + 1) * size)
    epochs = positions // prompts
    return np.array(
        [_order(prompts, seed, int(epoch))[at % prompts] for epoch, at in zip(epochs, positions, strict=True)]
    )


@lru_cache(maxsize=2)  # a step lies in one epoch or two; of millions, one takes a tenth of a second
def _order(prompts: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 1, epoch)).permutation(prompts)


def reference_log_probs(stage: Stage, reference: nn.Module | None) -> Reference:
    """Log-probs under the frozen start: a model of its own, or the policy with its adapters switched off."""
    if reference is not None:
        frozen = reference.to(stage.accelerator.device).eval().requires_grad_(False)
        return lambda groups: completion_log_probs(frozen, groups)
    model: Any = stage.model

    def without_adapters(groups: Groups) -> Tensor:
        with evaluating(model), model.disable_adapter():  # no dropout in the reference
            return completion_log_probs(model, groups)

    return without_adapters
