"""The guard against numbers that are not finite: what is wrong is said, and no weight is touched.

The loss, the sums over rewards and scores and the gradient's norm are Python floats in every step anyway, the same on
all processes, so the guard costs no wait for the device. Only where one of them is not finite does it look deeper: at
weights, hidden states, log-probs and gradients, on the weights that the step began with. The report is a JSON file in
the run folder, RUN/nonfinite-<stage>-step-<number>.json:

    stage, step     where; steps count from 1
    figures         what was not finite: name -> "nan", "inf" or "-inf"
    action          stopped or skipped
    found           tensors with such values, in the order in which a step makes them: name, how many values, the users
                    whose groups they belong to, or the training windows (rows, from 0) of a batch of SFT
    note            what there is to say beyond that, or null

Knows nothing of optimizers or loops; `engine.Stage` asks it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .atomic import write_atomically
from .folder import RunFolder
from .processes import Processes

_NAMES_IN_A_MESSAGE = 5
ORDER = ("weight", "rewards", "scores", "hidden", "log_probs", "ref_log_probs", "advantages", "gradient")


class TrainingStoppedError(RuntimeError):
    """Training ended by itself, on all processes alike; the message says why and what to do."""


class NonFiniteError(TrainingStoppedError, FloatingPointError):
    """Something was not finite; nothing was updated with it."""


@dataclass(frozen=True)
class Finding:
    """A tensor with values that are not finite."""

    tensor: str  # begins with one of ORDER
    values: int
    users: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()


Look = Callable[[nn.Module], list[Finding]]
"""Looks for what is not finite, given the model with whole weights; on each process at its own part of the batch."""


def nonfinite(figures: Mapping[str, float]) -> dict[str, float]:
    """Those of the figures that are NaN or infinite."""
    return {name: value for name, value in figures.items() if not math.isfinite(value)}


def parameter_findings(model: nn.Module) -> list[Finding]:
    """Weights and gradients; of sharded ones this process's part."""
    found = []
    for kind in ("weight", "gradient"):
        for name, parameter in model.named_parameters():
            tensor = parameter.detach() if kind == "weight" else parameter.grad
            if tensor is None:
                continue
            local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            values = int((~local.isfinite()).sum())
            if values:
                found.append(Finding(f"{kind} of {name}", values))
    return found


def of_groups(name: str, is_wrong: Tensor, users: Tensor | None) -> list[Finding]:
    """At most one finding. is_wrong: bool [B, ...], values that are not finite; users: int64 [B]."""
    values = int(is_wrong.sum())
    if not values:
        return []
    wrong = is_wrong.flatten(1).any(1)
    return [Finding(name, values, users=() if users is None else tuple(users[wrong].tolist()))]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding a tensor, in the order in which a step makes them."""
    by_name: dict[str, Finding] = {}
    for one in findings:
        old = by_name.get(one.tensor, Finding(one.tensor, 0))
        by_name[one.tensor] = Finding(
            one.tensor,
            old.values + one.values,
            tuple(sorted({*old.users, *one.users})),
            tuple(sorted({*old.windows, *one.windows})),
        )
    return sorted(by_name.values(), key=lambda one: ORDER.index(one.tensor.split()[0]))


def gathered(
    look: Callable[[], list[Finding]], processes: Processes, *, is_sharded: bool, model: nn.Module
) -> tuple[list[Finding], str | None]:
    """What all processes find, and a note where one of them failed to look. All processes call it."""
    # Gradients and weights that every process has whole are looked at once.
    own = parameter_findings(model) if is_sharded or processes.is_first else []
    note = None
    try:
        own += look()
    except Exception as error:  # a second error must not hide the first
        note = f"looking deeper failed: {type(error).__name__}: {error}"
    parts = processes.gather((own, note))
    found = merged(finding for findings, _ in parts for finding in findings)
    notes = [said for _, said in parts if said is not None]
    if not found and not notes:
        notes = ["nothing else is not finite when the batch is run again without dropout: a sum has overflowed"]
    return found, notes[0] if notes else None


def write_report(
    run: RunFolder,
    stage: str,
    step: int,
    figures: Mapping[str, float],
    action: str,
    found: list[Finding],
    note: str | None,
) -> Path:
    """Write RUN/nonfinite-<stage>-step-<number>.json; of several processes the first does."""
    path = run.path / f"nonfinite-{stage}-step-{step}.json"
    report: dict[str, Any] = {
        "stage": stage,
        "step": step,
        "figures": {name: str(value) for name, value in figures.items()},
        "action": action,
        "found": [asdict(one) for one in found],
        "note": note,
    }
    if run.writes:
        write_atomically(path, json.dumps(report, indent=1) + "\n")
    return path


def describe(stage: str, step: int, figures: Mapping[str, float], found: list[Finding]) -> str:
    """The first sentence of a message: what, in which stage and step, of which tensor and groups."""
    said = " and ".join(f"the {name} is {value}" for name, value in figures.items())
    line = f"{stage}: {said} at step {step}"
    if found:
        first = found[0]
        line += f"; first in {first.tensor} ({first.values} values"
        for kind, numbers in (("users", first.users), ("training windows", first.windows)):
            if numbers:
                shown = ", ".join(map(str, numbers[:_NAMES_IN_A_MESSAGE]))
                line += f", {kind} {shown}" + (" and more" if len(numbers) > _NAMES_IN_A_MESSAGE else "")
        line += ")"
    return line


def require_finite_weights(model: nn.Module, processes: Processes, stage: str, step: int) -> None:
    """Stop where weights are not finite, before they are evaluated or saved; all processes alike.

    An update with finite gradients makes such weights where the learning rate is beyond all bounds.
    """
    with torch.no_grad():
        weights = [parameter.detach() for parameter in model.parameters()]
        local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        wrong = sum(((~weight.isfinite()).sum() for weight in local), torch.zeros((), device=processes.device))
    (values,) = processes.sums(wrong)
    if values:
        names = [one.tensor for one in parameter_findings(model) if one.tensor.startswith("weight")]
        named = f" ({', '.join(names[:_NAMES_IN_A_MESSAGE])}{', ...' * (len(names) > _NAMES_IN_A_MESSAGE)})"
        raise NonFiniteError(
            f"{stage}: {int(values)} weights are not finite after step {step}{named if names else ''}; they are "
            "neither evaluated nor saved. The last checkpoint is intact: lower the learning rate and start again"
        )
