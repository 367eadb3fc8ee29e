"""One GRPO step, top to bottom: a batch of prompts, rollout and rewards, the groups that teach, loss, update.

Groups whose rewards are all equal have no gradient. Without KL they are left out of the forward, and the others are
dealt out evenly to the processes. All processes call the functions here in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from tawin_kernels import GRPOLoss
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import Config, GRPOConfig
from ..data.dataset import Examples
from ..data.ragged import Ragged
from ..model.cross_entropy import WindowBatch, sampled_negatives, window_loss
from ..run.processes import Processes, Sum, is_sharded
from .findings import count_wrong, look_into_groups
from .groups import Groups
from .loss import group_loss, loss_denominator
from .rebalance import balanced
from .rollout import may_share_prompts, roll_out

if TYPE_CHECKING:
    from ..train.engine import Stage

Reference = Callable[[Groups], Tensor]
"""Log-probs [B, G, L] under the reference model."""


def grpo_step(
    stage: Stage, catalog: Catalog, prompts: Examples, config: Config, reference: Reference | None
) -> dict[str, float]:
    """One step on its batch of the `prompts`: a rollout and `config.grpo.updates` updates on it.

    reference: log-probs under the reference model, where `config.grpo.beta` is above 0.

    Returns the figures of the step; loss, KL, clip fraction and gradient norm are those of its last update.
    """
    grpo = config.grpo
    size = grpo.batch_size * grpo.gradient_accumulation
    batch = prompts.take(prompt_rows(len(prompts), config.seed, stage.progress.step, size))
    rate = stage.scheduler.get_last_lr()[0]
    rollout = collect(stage, catalog, batch, config)
    look = partial(look_into_groups, reference=reference, config=grpo)
    if rollout.wrong:
        nonfinite = {"sum of rewards and scores": math.nan}
        stage.refuse(nonfinite, partial(look, parts=rollout.batches))
        return rollout.figures
    old_log_probs: list[Tensor] | None = None
    for update in range(grpo.updates):
        figures, log_probs = backward(stage, catalog, rollout, config, reference, old_log_probs)
        old_log_probs = log_probs if update == 0 else old_log_probs
        checked = {"loss": figures["loss"], "KL": figures["kl"]}
        ends = update == grpo.updates - 1
        norm = stage.update(ends_step=ends, figures=checked, look=partial(look, parts=rollout.parts))
        if math.isnan(norm):  # skipped, and with it what is left of the step
            break
    return {**rollout.figures, **figures, "grad_norm": norm, "learning_rate": rate}


def grpo_backward(
    stage: Stage, catalog: Catalog, chosen: Examples, config: Config, reference: Reference | None
) -> dict[str, float]:
    """A step on the prompts `chosen`, of all processes, but for its update: the gradients are left on the parameters.

    Returns the step's figures over all processes: reward, hit_share, live_share, loss, kl, clip_fraction.
    """
    rollout = collect(stage, catalog, chosen, config)
    return {**rollout.figures, **backward(stage, catalog, rollout, config, reference, None)[0]}


@dataclass(frozen=True)
class Rollout:
    """What the updates of a step train on: this process's part, and what is known of the whole."""

    batches: list[Groups]
    """All of this process's groups, a batch per forward."""
    parts: list[Groups]
    """What goes through the policy together."""
    tokens: list[Tensor]
    """Tokens that count in each part: none where a group is run for company."""
    denominator: float
    """What the summed loss of all processes is divided by."""
    config: GRPOConfig
    """With the anchor of this step."""
    figures: dict[str, float]
    wrong: bool
    """Whether some reward or score is not finite, the same on all processes."""
    targets: list[WindowBatch]
    """Windows of the prompts' first targets, for their cross-entropy; empty where it has no weight."""


def collect(stage: Stage, catalog: Catalog, chosen: Examples, config: Config) -> Rollout:
    """Rollout and rewards of the prompts `chosen`, which all processes share, and the groups to train on."""
    grpo, processes = config.grpo.at_step(stage.progress.step), stage.processes
    stage.model.train()
    seed = np.random.SeedSequence((config.seed, 2, stage.progress.step)).generate_state(1)[0]
    generator = torch.Generator(processes.device).manual_seed(int(seed))
    rows, size = np.arange(len(chosen)), grpo.batch_size
    forwards = [chosen.take(rows[start : start + size]) for start in range(0, len(chosen), size)]
    # The weights that FSDP2 gathers for a rollout are gone when its backward pass would come.
    shares = not is_sharded(stage.engine) and may_share_prompts(stage.model, grpo)
    with stage.accelerator.autocast():
        batches = stage.infer(roll_out_own, catalog, forwards, grpo, generator, processes, shares)

    prompts = sum(len(groups.rewards) for groups in batches)
    live = [groups.live.sum() for groups in batches]
    known = processes.figures(
        {
            "reward": Sum(sum(g.rewards.sum(dtype=torch.float64) for g in batches), prompts * grpo.group_size),
            "hit_share": Sum(sum(groups.hits.sum() for groups in batches), prompts),
            "live_share": Sum(sum(live), prompts),
            "wrong": Sum(count_wrong(batches, min(grpo.group_size, catalog.num_sequences))),
            "denominator": Sum(loss_denominator(batches, grpo.loss_type, grpo.count)),
            **{f"live {index}": Sum(count) for index, count in enumerate(live)},
        }
    )
    is_live = [known[f"live {index}"] > 0 for index in range(len(batches))]
    dealt = balanced(batches, processes) if grpo.beta == 0 and any(is_live) else batches
    trained = [index for index in range(len(batches)) if grpo.beta > 0 or is_live[index]]
    return Rollout(
        batches,
        [dealt[index] if len(dealt[index].rewards) else for_company(batches[index]) for index in trained],
        [dealt[index].counted(grpo.count).sum() for index in trained],
        known["denominator"],
        grpo,
        {name: known[name] for name in ("reward", "hit_share", "live_share")},
        known["wrong"] > 0,
        target_windows(catalog, forwards, processes) if grpo.nll_weight > 0 else [],
    )


def roll_out_own(
    model: nn.Module,
    catalog: Catalog,
    forwards: list[Examples],
    config: GRPOConfig,
    generator: torch.Generator,
    processes: Processes,
    shares_prompts: bool,
) -> list[Groups]:
    """The groups of this process's share of the examples of each forward."""
    batches = []
    for examples in forwards:
        part = processes.share(len(examples))
        own = examples.take(np.arange(len(examples))[part])
        input_ids, attention_mask = catalog.encode_histories(own.histories)
        weights = own.all_weights()
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
            histories=own.histories,
            weights=None if weights is None else torch.as_tensor(weights, device=processes.device),
        )
        batches.append(replace(groups, users=torch.as_tensor(own.user_ids, device=processes.device)))
    return batches


def for_company(groups: Groups) -> Groups:
    """A group without its rewards, whose gradient is zero: engines want all processes in a forward or none."""
    return groups.take(torch.zeros(1, dtype=torch.int64, device=groups.rewards.device)).without_rewards()


def target_windows(catalog: Catalog, forwards: list[Examples], processes: Processes) -> list[WindowBatch]:
    """This process's prompts with their first targets, as SFT has them."""
    batches = []
    for examples in forwards:
        share = np.arange(len(examples))[processes.share(len(examples))]
        own = examples.take(share if len(share) else [0])  # a process that has no prompt runs one for company
        pairs = zip(own.histories, own.targets, strict=True)
        windows = Ragged.of([np.append(history, target) for history, target in pairs])
        if own.weights is not None:
            windows = replace(windows, weights=np.repeat(own.weights, windows.lengths))
        last = windows.lengths - 1
        batches.append(WindowBatch.of(catalog, windows, last, processes.device, counts=len(share) > 0))
    return batches


def backward(
    stage: Stage,
    catalog: Catalog,
    rollout: Rollout,
    config: Config,
    reference: Reference | None,
    old_log_probs: list[Tensor] | None,
) -> tuple[dict[str, float], list[Tensor]]:
    """Loss and backward of an update: its figures, and the log-probs of each part, [B, G, L].

    All updates of a step drop the same: the ratio is that of the policies, not of the dropout's masks.

    old_log_probs: those of the step's first update; None in that one, whose ratios are 1.
    """
    stage.seed(config.seed)
    grpo, processes, zero = rollout.config, stage.processes, torch.zeros((), dtype=torch.float64)
    loss, kl, clipped, tokens, nll = (zero.to(processes.device) for _ in range(5))
    log_probs, last = [], len(rollout.parts) + len(rollout.targets) - 1
    for index, (groups, count) in enumerate(zip(rollout.parts, rollout.tokens, strict=True)):
        old = None if old_log_probs is None else old_log_probs[index]
        arguments = (reference, groups, grpo, rollout.denominator, old)
        found = GRPOLoss(*stage.backward(group_loss, *arguments, is_last=index == last))
        loss, tokens = loss + found.loss, tokens + count
        kl, clipped = kl + found.kl * count, clipped + found.clip_fraction * count
        log_probs.append(found.log_probs)
    if rollout.targets:
        (total,) = processes.sums(sum(batch.total for batch in rollout.targets))
        weighed = (total / grpo.nll_weight, config.attention, sampled_negatives(catalog, config))
    for index, batch in enumerate(rollout.targets, len(rollout.parts)):
        nll += stage.backward(window_loss, batch, *weighed, is_last=index == last)[0]
    sums = {"loss": Sum(loss + nll), "kl": Sum(kl, tokens), "clip_fraction": Sum(clipped, tokens)}
    if rollout.targets:
        sums["nll"] = Sum(nll / grpo.nll_weight)
    return processes.figures(sums), log_probs


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
