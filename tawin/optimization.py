"""What the SFT and the GRPO loop share: optimizer, schedule, one update, and the account of the best model so far."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase, get_scheduler

from .checkpoint import Progress, finish_replacing, load_state, read_progress, save_model, save_state
from .config import OptimizerConfig
from .run_folder import RunFolder


def make_accelerator() -> Accelerator:
    """One process, bf16 autocast on CUDA, fp32 on the CPU. Never MPS: the reference ops need fp64."""
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no")
    if accelerator.num_processes > 1:
        raise ValueError(
            f"expected one process, got {accelerator.num_processes}: training on several is not supported yet"
        )
    return accelerator


@dataclass
class Stage:
    """One training stage in progress: the prepared model, its optimizer and schedule, and how far it has come."""

    accelerator: Accelerator
    model: nn.Module
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
        model = model.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), foreach=True
        )
        scheduler = get_scheduler(
            "cosine" if config.schedule == "cosine" else "constant_with_warmup",
            optimizer,
            num_warmup_steps=math.ceil(config.warmup_share * total_steps),
            num_training_steps=max(1, total_steps),
        )
        finish_replacing(run.checkpoints / name)
        folder = run.checkpoints / "state"
        progress = read_progress(folder)
        if progress is not None and progress.stage == name:
            load_state(folder, model, optimizer, scheduler)
        else:
            progress = Progress(name, metrics_size=progress.metrics_size if progress is not None else 0)
        run.forget_metrics_after(progress.metrics_size)
        model, optimizer = accelerator.prepare(model, optimizer)
        started = time.monotonic() - progress.seconds
        return cls(accelerator, model, tokenizer, optimizer, scheduler, run, progress, config.max_grad_norm, started)

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage, resumed ones included."""
        return time.monotonic() - self._started

    @property
    def state_folder(self) -> Path:
        return self.run.checkpoints / "state"

    def update(self) -> float:
        """Clip the gradients, step the optimizer and the schedule; returns the norm before clipping.

        A parameter without a gradient counts as one with gradient zero, so that a batch whose groups are all dead moves
        the weights exactly as if it had been run.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"{self.progress.stage}: the gradient norm is {norm} at step {self.progress.step + 1}; "
                "nothing was updated. The last checkpoint is intact: lower the learning rate and start again"
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
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
            save_model(self.accelerator.unwrap_model(self.model), self.tokenizer, self.best_model)
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
        model = self.accelerator.unwrap_model(self.model)
        save_state(self.state_folder, model, self.optimizer.optimizer, self.scheduler, self.progress)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
