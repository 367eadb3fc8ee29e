"""What the SFT and the GRPO loop share: engine, optimizer, schedule, one update, the account of the best model."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, get_scheduler

from ..config import CheckpointConfig, GuardConfig, OptimizerConfig
from ..model.backbone import backbone
from ..model.packing import packs
from ..run.folder import RunFolder
from ..run.guards import Look, NonFiniteError, describe, gathered, nonfinite, require_finite_weights, write_report
from ..run.phases import phase
from ..run.processes import EngineModule, Processes, is_sharded, on_whole_weights
from ..run.signals import Stopped, stop_if_asked
from ..run.states import keep_newest, state_folder
from .checkpoint import Progress, find_state, load_state, save_model, save_state

T = TypeVar("T")

MAX_GRAD_NORM = 1.0  # gradients of a larger norm are scaled down to it


@dataclass
class Stage:
    """One training stage in progress: the model and its engine, optimizer and schedule, and how far it has come.

    All processes hold one and call the same methods in the same order.
    """

    accelerator: Accelerator
    processes: Processes
    model: nn.Module
    """The model itself. Its weights are whole where one process trains it or DDP does, else within `infer`."""
    engine: nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: Any
    scheduler: Any
    run: RunFolder
    progress: Progress
    saving: CheckpointConfig
    config_digest: str
    _started: float
    guards: GuardConfig
    _saved_step: int
    _saved_at: float

    @classmethod
    def start(
        cls,
        name: str,
        accelerator: Accelerator,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: OptimizerConfig,
        total_steps: int,
        run: RunFolder,
        guards: GuardConfig = GuardConfig(),  # noqa: B008 (frozen)
        saving: CheckpointConfig = CheckpointConfig(),  # noqa: B008
    ) -> Stage:
        """Prepare a stage; where the run folder holds a state of this stage, go on from it."""
        processes = Processes.of(accelerator)
        # While its weights are still whole: refuses what cannot be trained right, and tries how it can be run.
        packs(backbone(model))
        optimizer = _make_optimizer(model, config)
        scheduler = get_scheduler(
            "cosine" if config.schedule == "cosine" else "constant_with_warmup",
            optimizer,
            num_warmup_steps=math.ceil(config.warmup_share * total_steps),
            num_training_steps=max(1, total_steps),
        )
        engine, optimizer = accelerator.prepare(EngineModule(model), optimizer)
        digest = run.config_digest
        found = processes.ask_first(lambda: find_state(run.checkpoints, digest))
        progress = Progress(name, metrics_size=found[1].metrics_size if found is not None else 0)
        is_resumed = found is not None and found[1].stage == name
        if found is not None and is_resumed:
            folder, progress = found
            load_state(folder, model, optimizer.optimizer, scheduler)
        run.forget_metrics_after(progress.metrics_size)
        run.tracking.begin(name, progress.step if is_resumed else None)
        now = time.monotonic()
        return cls(
            accelerator,
            processes,
            model,
            engine,
            tokenizer,
            optimizer,
            scheduler,
            run,
            progress,
            saving,
            digest,
            now - progress.seconds,
            guards,
            progress.step if is_resumed else -1,
            now,
        )

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage, resumed ones included."""
        return time.monotonic() - self._started

    def seed(self, seed: int) -> None:
        """Make the dropout of the next step a function of seed, stage, step and process: no random state is kept."""
        entropy = (seed, 3, int(self.progress.stage == "grpo"), self.progress.step, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    @torch.no_grad()
    def infer(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """work(model, ...) without gradient; all processes call it, each with as many forwards as it needs."""
        if is_sharded(self.engine):
            return on_whole_weights(self.engine, lambda model: work(model, *arguments, **options), self.accelerator)
        return work(self.model, *arguments, **options)

    def backward(self, work: Callable[..., tuple[Tensor, ...]], *arguments: Any, is_last: bool) -> tuple[Tensor, ...]:
        """Add the gradients of the loss that `work(model, ...)` returns first; gives all of it back, detached.

        work: its loss is this process's part of a sum over all of them. All processes call this equally often a step.
        is_last: no other call comes before `update`; until then DDP need not sum the gradients.
        """
        waits = isinstance(self.engine, DistributedDataParallel) and not is_last
        with self.engine.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with self.accelerator.autocast():
                found = self.engine(work, *arguments)
            with phase("backward"):
                # Engines take the mean of the processes' gradients; the sum is wanted.
                self.accelerator.backward(found[0] * self.processes.count)
        return tuple(tensor.detach() for tensor in found)

    def update(
        self, *, ends_step: bool = True, figures: Mapping[str, float] | None = None, look: Look | None = None
    ) -> float:
        """Clip the gradients, step the optimizer and the schedule; returns the norm before clipping.

        ends_step: False for updates that others of the same training step follow; step and schedule stay.
        figures: of the step, the same on all processes. Where one of them or the norm is not finite, nothing is
            updated: see `refuse`, which `look` is for. The result is NaN then.

        A parameter without a gradient counts as one with gradient zero, so that a batch whose groups are all dead moves
        the weights exactly as if it had been run.
        """
        with phase("optimizer"):
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            # Not clipped before it is known to be finite: a norm of infinity or NaN would make NaN of all gradients.
            found: Any = nn.utils.get_total_norm([p.grad for p in parameters])
            norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
            wrong = nonfinite({**(figures or {}), "gradient norm": norm})
            if wrong:
                self.refuse(wrong, look)
                return math.nan
            nn.utils.clip_grads_with_norm_(parameters, MAX_GRAD_NORM, found)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if ends_step:
                self._end_step()
        return norm

    def refuse(self, wrong: Mapping[str, float], look: Look | None = None) -> None:
        """Report a step in which something was not finite; stop, or end the step without an update (`guards`).

        All processes call it, with the same figures. `look` finds out where in the batch it is.

        Raises:
            NonFiniteError: guards.nonfinite is "stop", or too many steps in a row were skipped.
        """
        stage, step = self.progress.stage, self.progress.step + 1
        in_a_row = self.progress.skipped_in_a_row + 1
        stops = self.guards.nonfinite == "stop" or in_a_row > self.guards.max_skips
        found, note = gathered(
            lambda: self.infer(look) if look is not None else [],
            self.processes,
            is_sharded=is_sharded(self.engine),
            model=self.model,
        )
        path = write_report(self.run, stage, step, wrong, "stopped" if stops else "skipped", found, note)
        message = describe(stage, step, wrong, found)
        if stops:
            why = f"; the {self.guards.max_skips} steps before it were skipped" if in_a_row > 1 else ""
            raise NonFiniteError(
                f"{message}{why}; nothing was updated. The last checkpoint is intact: lower the learning rate and "
                f"start again, or go on with --resume --guards.nonfinite skip. Report: {path}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self._end_step(skipped_in_a_row=in_a_row)
        if self.processes.is_first:
            tqdm.write(f"{message}; the step was skipped. Report: {path}")

    def _end_step(self, *, skipped_in_a_row: int = 0) -> None:
        self.scheduler.step()
        self.progress = dataclasses.replace(
            self.progress,
            step=self.progress.step + 1,
            skipped_steps=self.progress.skipped_steps + (skipped_in_a_row > 0),
            skipped_in_a_row=skipped_in_a_row,
        )

    def require_finite_weights(self) -> None:
        """Stop where a weight is not finite: what is not is never evaluated or saved."""
        require_finite_weights(self.model, self.processes, self.progress.stage, self.progress.step)

    def log(self, **values: Any) -> None:
        """A line in metrics.jsonl, without numbers that are not finite, which JSON has not."""
        wrong = nonfinite({name: value for name, value in values.items() if isinstance(value, float)})
        values = {name: value for name, value in values.items() if name not in wrong}
        if self.progress.skipped_steps:
            values["skipped_steps"] = self.progress.skipped_steps
        self.run.log(
            {"stage": self.progress.stage, "step": self.progress.step, "seconds": round(self.seconds, 3), **values}
        )

    def record(self, valid: dict[str, float], select: str) -> None:
        """Take an evaluation on valid: log it, keep the model where it is the best so far. No figures: keep it."""
        value = valid[select] if valid else self.progress.best_value
        if valid:
            self.log(valid=valid)
        if value > self.progress.best_value or not valid:
            save_model(self.model, self.tokenizer, self.best_model, processes=self.processes)
            self.progress = dataclasses.replace(self.progress, best_step=self.progress.step, best_value=value, stale=0)
        else:
            self.progress = dataclasses.replace(self.progress, stale=self.progress.stale + 1)
        self.progress = dataclasses.replace(self.progress, evaluated=self.progress.step)

    @property
    def best_model(self) -> Path:
        """Folder of the best model of this stage."""
        return self.run.checkpoints / self.progress.stage

    def save(self, *, finished: bool = False) -> None:
        """Write the state that --resume goes on from; older ones than `checkpoints.keep` says are removed."""
        self.require_finite_weights()
        self.run.sync_metrics()
        self.progress = dataclasses.replace(
            self.progress, finished=finished, seconds=self.seconds, metrics_size=self.run.metrics_size
        )
        save_state(
            state_folder(self.run.checkpoints, self.progress.stage, self.progress.step),
            self.model,
            self.optimizer.optimizer,
            self.scheduler,
            self.progress,
            config_digest=self.config_digest,
            processes=self.processes,
        )
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        if self.processes.is_first:
            keep_newest(self.run.checkpoints, self.saving.keep)

    def save_or_stop(self) -> None:
        """To be called after each step and its evaluation: saves where it is due, ends where a signal asked for it.

        Raises:
            Stopped: on all processes, with the state of this step saved.
        """
        is_saved = self._saved_step == self.progress.step
        if not is_saved and self._save_is_due():
            self.save()
            is_saved = True
        try:
            stop_if_asked(self.processes)
        except Stopped:
            if not is_saved:
                self.save()
            raise

    def _save_is_due(self) -> bool:
        every, minutes = self.saving.save_every, self.saving.save_minutes
        if every is not None and self.progress.step % every == 0:
            return True
        # One clock counts: the first process's.
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60.0 * minutes
        return minutes is not None and self.processes.sums(float(is_late and self.processes.is_first))[0] > 0


def _make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    return kinds[config.optimizer](groups, lr=config.learning_rate, betas=(0.9, 0.95))


def require_optimizer(config: OptimizerConfig, name: str) -> None:
    """Refuse, under the config section's name, an optimizer that this machine has not."""
    if config.optimizer == "adamw":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"{name}.optimizer: {config.optimizer!r} needs bitsandbytes: pip install bitsandbytes")
    if config.optimizer == "paged_adamw_8bit" and not torch.cuda.is_available():
        raise ValueError(f"{name}.optimizer: expected 'adamw' or 'adamw_8bit' without a GPU, got {config.optimizer!r}")


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
