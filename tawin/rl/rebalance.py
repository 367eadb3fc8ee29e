"""Groups with a gradient, dealt out anew: every process trains on as many as the others.

Without KL only groups with unequal rewards are trained on, and chance gives one process twice as many as another; all
would wait for that one. A group is some kilobytes of tokens and rewards, so after the rollout they are handed from
process to process, whole. What is dealt to whom changes no sum, but for its rounding.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..run.processes import Processes
from .groups import Groups

_TENSORS = tuple(field.name for field in fields(Groups) if field.name not in ("trie", "prompt"))


def balanced(batches: list[Groups], processes: Processes) -> list[Groups]:
    """This process's part of the live groups that all processes have of each batch; may be empty.

    The parts of a batch differ by one group at most, and hold long prompts and short ones alike. All processes call
    it, with as many batches.
    """
    live = [groups.take(groups.live.nonzero()[:, 0]) for groups in batches]
    if processes.count == 1:
        return live
    sent = [_tensors(groups) for groups in live]
    received = processes.gather(sent)  # [processes][batches]
    dealt = []
    for number, groups in enumerate(live):
        whole = _joined([of_process[number] for of_process in received])
        # Where they do not come out even, another process is the one with one more at every batch.
        turn = (processes.rank + number) % processes.count
        mine = whole["attention_mask"].sum(1).argsort(descending=True, stable=True)[turn :: processes.count]
        on_device: dict[str, Any] = {name: tensor.to(processes.device) for name, tensor in whole.items()}
        dealt.append(replace(groups, **on_device).take(mine.to(processes.device)))
    return dealt


def _tensors(groups: Groups) -> dict[str, Tensor]:
    tensors = {name: getattr(groups, name) for name in _TENSORS}
    return {name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The groups of all parts, the prompts padded on the left to the longest."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    for_prompts = {"input_ids", "attention_mask"}

    def filled(name: str, tensor: Tensor) -> Tensor:
        return pad(tensor, (longest - tensor.shape[1], 0)) if name in for_prompts else tensor

    return {name: torch.cat([filled(name, part[name]) for part in parts]) for name in parts[0]}
