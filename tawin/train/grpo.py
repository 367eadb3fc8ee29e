"""GRPO with TAWin: the stage that takes `rl.step.grpo_step` again and again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..config import Config
from ..data.dataset import Split
from ..evaluate.ranking import decided
from ..model.policy import evaluating
from ..rl.groups import Groups
from ..rl.loss import completion_log_probs
from ..rl.step import Reference, grpo_step
from ..run.folder import RunFolder
from .checkpoint import Progress
from .engine import Stage
from .loop import Loop
from .watchdog import Watchdog


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
    watchdog = Watchdog.of(stage, config)
    with Loop(stage, catalog, split.valid, config, steps, grpo.evaluate_every, shown=("reward", "live_share")) as loop:
        while loop.goes_on():
            anchor = {"anchor": grpo.at_step(stage.progress.step).tawin.anchor} if grpo.tawin.moves else {}
            figures = grpo_step(stage, catalog, split.rl, config, frozen)
            loop.took({**figures, **anchor})
            watchdog.watch(stage, figures)
    return stage.progress


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
