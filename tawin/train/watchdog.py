"""The watchdog of RL: hits that collapse and a KL that explodes, seen in the figures that every step logs.

    collapse    the hits (groups in which the rollout found a target) of the last `window` steps are below `hit_share`
                of the best window's, and stay there for `patience` steps. A best window of fewer than 25 hits is no
                measure: there chance alone takes hits to nothing
    explosion   the KL is above `max_kl` nats per token in three steps in a row

Each is said once, and again only after it has been over. After a resume the figures of the steps so far are read from
metrics.jsonl, so nothing is kept in checkpoints. Knows figures by name, not what makes them; those that a step lacks
are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..config import Config, WatchdogConfig
from ..run.guards import TrainingStoppedError
from ..run.records import read_metrics
from .engine import Stage

_FEWEST_HITS = 25.0
_STEPS_OF_KL = 3


@dataclass(frozen=True)
class Limits:
    """What an alarm is."""

    window: int = 20
    hit_share: float = 0.2
    patience: int = 10
    max_kl: float = 10.0


LIMITS = Limits()


class WatchdogError(TrainingStoppedError):
    """The watchdog was told to stop a run that goes wrong."""


@dataclass(frozen=True)
class Alarm:
    """What has gone wrong; `value` is compared with `limit`."""

    name: str  # "reward_collapse" or "kl_explosion"
    message: str
    value: float
    limit: float


class Watchdog:
    """What is remembered of the steps so far; feed it every step's figures, in order."""

    def __init__(self, config: WatchdogConfig, prompts: int, limits: Limits) -> None:
        """prompts: of a step; hit_share of the figures is a share of them."""
        self._action = config.action
        self._limits = limits
        self._prompts = prompts
        self._hits: deque[float] = deque(maxlen=limits.window)
        self._best = 0.0  # hits of the best window
        self._steps = {"reward_collapse": 0, "kl_explosion": 0}  # in a row, that have been wrong

    @classmethod
    def of(cls, stage: Stage, config: Config) -> Watchdog:
        """With what the steps before a resume have shown it."""
        grpo, progress = config.grpo, stage.progress
        # Random completions find a target by luck alone: as hits of no prompts they are never a collapse.
        prompts = 0 if grpo.negatives == "random" else grpo.batch_size * grpo.gradient_accumulation
        watchdog = cls(config.watchdog, prompts, LIMITS)
        lines = read_metrics(stage.run.path / "metrics.jsonl") if progress.step else []
        for line in lines:
            if line["stage"] == progress.stage and line["step"] <= progress.step:
                watchdog.see(line)
        return watchdog

    def watch(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        """See a step, say and log its alarms. The figures, and so the alarms, are the same on all processes.

        Raises:
            WatchdogError: an alarm, where watchdog.action is "stop".
        """
        for alarm in self.see(figures):
            stage.log(alarm=alarm.name, value=alarm.value, limit=alarm.limit)
            said = f"{stage.progress.stage} step {stage.progress.step}: {alarm.message}"
            if self._action == "stop":
                raise WatchdogError(
                    f"{said}. The run was stopped (watchdog.action 'stop'); the best model so far and the last "
                    "saved state are kept: start again with other options, or go on with --resume --watchdog.action "
                    "warn"
                )
            if stage.processes.is_first:
                tqdm.write(f"warning: {said}")

    def see(self, figures: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that a step sets off."""
        if self._action == "off":
            return []
        found = []
        if "hit_share" in figures:
            found += self._see_hits(figures["hit_share"] * self._prompts)
        if "kl" in figures:
            found += self._see_kl(figures["kl"])
        return found

    def _see_hits(self, hits: float) -> list[Alarm]:
        limits = self._limits
        self._hits.append(hits)
        if len(self._hits) < limits.window:
            return []
        now = sum(self._hits)
        self._best = max(self._best, now)
        limit = limits.hit_share * self._best
        if not self._lasts("reward_collapse", self._best >= _FEWEST_HITS and now < limit, limits.patience):
            return []
        message = (
            f"reward collapse: {now:.0f} hits in the last {limits.window} steps, {self._best:.0f} in the best "
            f"{limits.window}; a lower learning rate or grpo.beta > 0 may keep what was learned"
        )
        return [Alarm("reward_collapse", message, now, limit)]

    def _see_kl(self, kl: float) -> list[Alarm]:
        limit = self._limits.max_kl
        if not self._lasts("kl_explosion", kl > limit, _STEPS_OF_KL):
            return []
        message = (
            f"exploding KL: {kl:.3g} nats a token, above {limit:g} in {_STEPS_OF_KL} steps in a row; "
            "lower the learning rate or raise grpo.beta"
        )
        return [Alarm("kl_explosion", message, kl, limit)]

    def _lasts(self, name: str, is_wrong: bool, patience: int) -> bool:
        """Whether it has just been wrong for so many steps in a row."""
        self._steps[name] = self._steps[name] + 1 if is_wrong else 0
        return self._steps[name] == patience
