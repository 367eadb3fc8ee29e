"""What the SFT and the GRPO loop share: engine, optimizer, schedule, one update, the account of the best model."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable
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
from transformers import PreTrainedTokenizerBase, get_scheduler

from .backbone import backbone
from .checkpoint import Progress, finish_replacing, load_state, read_progress, save_model, save_state
from .config import OptimizerConfig
from .distributed import EngineModule, Processes, is_sharded, on_whole_weights
from .packing import packs
from .phases import phase
from .run_folder import RunFolder

T = TypeVar("T")


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
    max_grad_norm: float
    _started: float

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
        folder = run.checkpoints / "state"

        def clean_up() -> Progress | None:
            finish_replacing(run.checkpoints / name)
            return read_progress(folder)

        progress = processes.ask_first(clean_up)
        if progress is not None and progress.stage == name:
            load_state(folder, model, optimizer.optimizer, scheduler)
        else:
            progress = Progress(name, metrics_size=progress.metrics_size if progress is not None else 0)
        run.forget_metrics_after(progress.metrics_size)
        started = time.monotonic() - progress.seconds
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
            config.max_grad_norm,
            started,
        )

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage, resumed ones included."""
        return time.monotonic() - self._started

    @property
    def state_folder(self) -> Path:
        return self.run.checkpoints / "state"

    def seed(self, seed: int) -> None:
        """Make the dropout of the next step a function of seed, stage, step and process: no random state is kept."""
        entropy = (seed, 3, int(self.progress.stage == "grpo"), self.progress.step, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    @torch.no_grad()
    def infer(self, work: Callable[[nn.Module], T]) -> T:
        """work(model) without gradient; all processes call it, each with as many forwards as it needs."""
        if is_sharded(self.engine):
            return on_whole_weights(self.engine, work, self.accelerator)
        return work(self.model)

    def backward(self, work: Callable[[nn.Module], tuple[Tensor, ...]], *, is_last: bool) -> tuple[Tensor, ...]:
        """Run `work` on the model and add the gradients of the loss that it returns first; gives back all, detached.

        work: its loss is this process's part of a sum over all of them. All processes call this equally often a step.
        is_last: no other call comes before `update`; until then DDP need not sum the gradients.
        """
        waits = isinstance(self.engine, DistributedDataParallel) and not is_last
        with self.engine.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with self.accelerator.autocast():
                found = self.engine(work)
            with phase("backward"):
                # Engines take the mean of the processes' gradients; the sum is wanted.
                self.accelerator.backward(found[0] * self.processes.count)
        return tuple(tensor.detach() for tensor in found)

    def update(self, *, ends_step: bool = True) -> float:
        """Clip the gradients, step the optimizer and the schedule; returns the norm before clipping.

        ends_step: False for updates that others of the same training step follow; step and schedule stay.

        A parameter without a gradient counts as one with gradient zero, so that a batch whose groups are all dead moves
        the weights exactly as if it had been run.
        """
        with phase("optimizer"):
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            found: Any = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"{self.progress.stage}: the gradient norm is {norm} at step {self.progress.step + 1}; "
                    "nothing was updated. The last checkpoint is intact: lower the learning rate and start again"
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if ends_step:
                self.scheduler.step()
                self.progress = dataclasses.replace(self.progress, step=self.progress.step + 1)
        return norm

    def log(self, **values: Any) -> None:
        """A line in metrics.jsonl."""
        self.run.log(
            {"stage": self.progress.stage, "step": self.progress.step, "seconds": round(self.seconds, 3), **values}
        )

    def record(self, valid: dict[str, float], select: str) -> None:
        """Take an evaluation on valid: log it, keep the model where it is the best so far."""
        value = valid[select]
        self.log(valid=valid)
        if value > self.progress.best_value:
            save_model(self.model, self.tokenizer, self.best_model, processes=self.processes)
            self.progress = dataclasses.replace(self.progress, best_step=self.progress.step, best_value=value, stale=0)
        else:
            self.progress = dataclasses.replace(self.progress, stale=self.progress.stale + 1)

    @property
    def best_model(self) -> Path:
        """Folder of the best model of this stage."""
        return self.run.checkpoints / self.progress.stage

    def save(self, *, finished: bool = False) -> None:
        """Write the state that --resume goes on from."""
        self.progress = dataclasses.replace(
            self.progress, finished=finished, seconds=self.seconds, metrics_size=self.run.metrics_size
        )
        save_state(
            self.state_folder,
            self.model,
            self.optimizer.optimizer,
            self.scheduler,
            self.progress,
            processes=self.processes,
        )


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
