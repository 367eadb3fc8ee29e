"""Options of what goes on around the steps: evaluation, guards, the watchdog, trackers, checkpoints."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from tawin_kernels.types import Normalizer

from .checks import require, require_choices, require_type

KS = (1, 3, 5, 10)  # the cut-offs that every evaluation reports


@dataclass(frozen=True)
class EvaluationConfig:
    """Constrained beam search over the whole catalogue."""

    beam_width: int = 50
    """W, beams of the search; a target that is not among the W best items counts as not found."""
    batch_size: int = 64
    """Prompts of one search."""
    valid_users: int | None = 1000
    """Users that are evaluated on valid while training (sampled once); None: all."""
    test_users: int | None = None
    """Users of the final evaluations of valid and test; None: all. results.json says how many."""
    normalizer: Normalizer = "vocab"
    """What the search's log p is a softmax over, as in grpo.normalizer."""
    exclude_history: Literal["auto", "yes", "no"] = "auto"
    """Never recommend an item that the user has seen, in the prompt's history or before it. auto: where the training
    data says that hardly anybody takes an item twice, as published figures do for such data. Baselines follow it."""
    counts_weight: float | None = None
    """w of the share (1 - w) p + w c that ranks an item: p the model's, c that of what stands near the history's last
    items in the training data, counted (`data.transitions`). Every item is scored then, without a search. None: 0.5
    where each item is one token, else 0. RL trains the model alone."""
    select: Literal["recall@1", "recall@3", "recall@5", "recall@10", "ndcg@3", "ndcg@5", "ndcg@10"] = "recall@3"
    """The valid metric by which checkpoints are chosen."""

    def __post_init__(self) -> None:
        if isinstance(self.exclude_history, bool):  # what YAML reads yes and no as, and what older runs wrote
            object.__setattr__(self, "exclude_history", "yes" if self.exclude_history else "no")
        require(self.beam_width >= max(KS), "evaluation.beam_width", f"at least {max(KS)}", self.beam_width)
        is_share = self.counts_weight is None or 0.0 <= self.counts_weight < 1.0
        require(is_share, "evaluation.counts_weight", "in [0, 1), or None", self.counts_weight)
        require(self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        for name in ("valid_users", "test_users"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"evaluation.{name}", "at least 1, or None", value)
        require_choices(self, "evaluation")

    @property
    def excludes_history(self) -> bool:
        """Whether items that the user has seen are left out; ValueError for an "auto" that nobody has decided."""
        decided = self.exclude_history != "auto"
        require(decided, "evaluation.exclude_history", "yes or no (ranking.decided)", self.exclude_history)
        return self.exclude_history == "yes"


@dataclass(frozen=True)
class GuardConfig:
    """What is done where a loss, reward, score or gradient is not finite (`tawin.run.guards`)."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """stop: the run ends with a report. skip: nothing more is updated in that step (of several
    grpo.updates those before it stay), it is counted and logged, and the next one begins. Weights that are not finite
    stop the run either way."""
    max_skips: int = 10
    """Steps in a row that may be skipped; one more stops the run."""

    def __post_init__(self) -> None:
        require_choices(self, "guards")
        require_type("guards.max_skips", self.max_skips, int)
        require(self.max_skips >= 1, "guards.max_skips", "at least 1", self.max_skips)


@dataclass(frozen=True)
class WatchdogConfig:
    """When RL is taken to have gone wrong: hits that collapse, a KL that explodes (`tawin.train.watchdog`)."""

    action: Literal["warn", "stop", "off"] = "warn"
    """warn: a message and a line in metrics.jsonl, once until it is over. stop: these, and the run ends."""

    def __post_init__(self) -> None:
        require_choices(self, "watchdog")


@dataclass(frozen=True)
class TrackingConfig:
    """Where the numbers of a run are shown as well; metrics.jsonl and results.json have them in any case."""

    to: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """TensorBoard's event files go into the run folder. No part of the experiment: it may differ on --resume."""
    project: str = "tawin"
    """The project of Weights & Biases or Trackio."""

    def __post_init__(self) -> None:
        require_choices(self, "tracking")
        # Trackio makes a file of it.
        is_name = re.fullmatch(r"\w[\w .-]*", self.project) is not None
        require(is_name, "tracking.project", "a name of letters, digits, spaces and _ . -, no path", self.project)


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state that --resume goes on from is written, beside each evaluation, and how many are kept.

    The best model of each stage is kept whatever is said here.
    """

    keep: int = 2
    """Newest states that are kept; a second one stands in where the first is damaged."""
    save_every: int | None = None
    """Optimizer steps between saves; None: at evaluations alone."""
    save_minutes: float | None = None
    """Minutes of training after which a save is due once a step has ended; None: at evaluations alone."""

    def __post_init__(self) -> None:
        require_type("checkpoints.keep", self.keep, int)
        require(self.keep >= 1, "checkpoints.keep", "at least 1", self.keep)
        if self.save_every is not None:
            require_type("checkpoints.save_every", self.save_every, int)
            require(self.save_every >= 1, "checkpoints.save_every", "at least 1, or None", self.save_every)
        minutes, expected = self.save_minutes, "above 0 and finite, or None"
        require(minutes is None or 0 < minutes < math.inf, "checkpoints.save_minutes", expected, minutes)
