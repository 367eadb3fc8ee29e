"""Checkpoints: models in Hugging Face format, and the training states that --resume goes on from.

    checkpoints/sft/                 the best model of the SFT stage (safetensors, tokenizer): from_pretrained loads it
    checkpoints/grpo/                the best model of the GRPO stage, the SFT start included
    checkpoints/state-grpo-000040/   weights in training, optimizer, schedule, progress, see states.py

A folder is written beside its place and renamed, so that a reader or a crash never meets half of one (atomic.py). No
pickle: tensors are safetensors, the rest JSON. Tensors are whole in it, whatever engine trained them, so a state goes
on with any engine and any number of processes. All processes call what saves; the first one writes.

A state has all that the next step depends on: weights, optimizer, schedule, the step, the best value so far, the size
of metrics.jsonl, the digest of the config. There is no state of random numbers in it, of any process, because nothing
random goes on from one step to the next: data order, rollouts and dropout of a step are functions of the seed, the step
and the process's rank. The position in the data is the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from ..model.policy import merged
from ..run.atomic import replace_folder
from ..run.processes import ALONE, Processes, like, whole
from ..run.states import newest_whole, write_manifest


@dataclass(frozen=True)
class Progress:
    """How far a stage has come."""

    stage: str
    step: int = 0
    best_step: int = -1  # -1: nothing evaluated yet
    best_value: float = -1.0
    stale: int = 0  # evaluations since the best one
    evaluated: int = -1  # the step of the last evaluation; -1: none yet
    finished: bool = False
    seconds: float = 0.0
    metrics_size: int = 0  # bytes of metrics.jsonl that belong to the steps so far
    skipped_steps: int = 0  # steps without an update, as something was not finite (guards)
    skipped_in_a_row: int = 0


def save_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, *, processes: Processes = ALONE
) -> None:
    """Write a model (adapters merged in) and its tokenizer in Hugging Face format, replacing the folder whole."""
    sharded = any(isinstance(p, DTensor) for p in model.parameters())
    weights = whole(_all_tensors(model), processes) if sharded else None

    def write(temporary: Path) -> None:
        plain: Any = merged(model)
        plain.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)

    _write_first(folder, write, processes)


def _write_first(folder: Path, write: Callable[[Path], None], processes: Processes) -> None:
    """Where the first process cannot write, all end; no process goes on before the folder is there."""
    processes.ask_first(lambda: replace_folder(folder, write) if processes.is_first else None)


def _all_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers under the names of the state dict; tied ones are one tensor under several names."""
    names = model.state_dict().keys()
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from ((name, tensor) for name, tensor in named if name in names)


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
    *,
    config_digest: str | None = None,
    processes: Processes = ALONE,
) -> None:
    """Write all that a stage needs to go on as if it had never stopped.

    Raises:
        WriteError: on the first process, the others end; the states that were there are whole.
    """
    weights = whole(((name, p) for name, p in model.named_parameters() if p.requires_grad), processes)
    moments, numbers = _split_tensors(optimizer.state_dict()["state"])
    tensors = _apart(whole(moments.items(), processes))

    def write(temporary: Path) -> None:
        temporary.mkdir()
        save_file(weights, temporary / "weights.safetensors")
        save_file(tensors, temporary / "optimizer.safetensors")
        state = {
            "progress": asdict(progress),
            "optimizer": numbers,
            "scheduler": _plain(scheduler.state_dict()),
            "config": config_digest,
        }
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        write_manifest(temporary)

    _write_first(folder, write, processes)


def find_state(checkpoints: Path, config_digest: str) -> tuple[Path, Progress] | None:
    """The state to go on from and how far it had come, None where there is none yet; see `newest_whole`."""
    folder = newest_whole(checkpoints, config_digest)
    return None if folder is None else (folder, read_progress(folder))


def read_progress(folder: Path) -> Progress:
    """The progress in a state folder."""
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))["progress"]
    return Progress(**{"evaluated": values["step"], **values})  # earlier versions saved after evaluations alone


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Put a state that `save_state` wrote back into a model, optimizer and schedule built as they were then.

    The number of processes and their engine may be others. Every process reads the files.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "weights.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != trained.keys():
        raise ValueError(
            f"{folder}: expected weights named as the model's, got {sorted(weights.keys() ^ trained.keys())}"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(like(weights[name], parameter))
    tensors = load_file(folder / "optimizer.safetensors")
    for old in ("random_state", "random_state_cuda"):  # states of earlier versions: a step is seeded by its number now
        tensors.pop(old, None)
    entries = _join_tensors(tensors, state["optimizer"])
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name, value in entries.get(index, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[index][name] = like(value, parameter)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    scheduler.load_state_dict({**scheduler.state_dict(), **state["scheduler"]})
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _split_tensors(state: dict[Any, Any], prefix: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Optimizer state as named tensors ("3.exp_avg") and the rest, for safetensors and JSON. Dicts may hold dicts."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            inner_tensors, inner_numbers = _split_tensors(value, f"{name}.")
            tensors |= inner_tensors
            numbers |= inner_numbers
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            numbers[name] = value
    return tensors, numbers


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share no memory, as safetensors wants them: bitsandbytes has one table for all parameters."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def _join_tensors(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, *inner, name = key.split(".")
        entries = state.setdefault(int(index), {})
        for part in inner:
            entries = entries.setdefault(part, {})
        entries[name] = value
    return state


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a scheduler's state that JSON can hold: its counters, not its functions."""
    return {name: value for name, value in state.items() if name != "lr_lambdas"}
