"""The k largest of each row with ties decided, in plain PyTorch: `torch.topk` promises no order among equal values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def top_k_stable(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each row, best first, ties by lower index, and their indexes (int64).

    scores: [rows, width] fp32 or fp64 without NaN, width < 2**31; -0.0 equals +0.0. Where k exceeds the width, the rest
    is -inf at index 0.
    """
    width = scores.shape[-1]
    kept = min(k, width)
    found = scores.topk(min(kept + 1, width), dim=-1)
    if kept == width or bool((found.values[:, kept - 1] > found.values[:, kept]).all()):
        # Which ones they are is beyond doubt: their own order is all that is left to decide.
        indexes = found.indices[:, :kept].sort(dim=-1).values
        best = scores.gather(-1, indexes)
        order = (best + 0.0).argsort(dim=-1, descending=True, stable=True)
        indexes = indexes.gather(-1, order)
    elif scores.dtype == torch.float32:
        # fp32 bits sort as integers once the negative numbers' order is turned round; the low half breaks ties.
        bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: -0.0 becomes +0.0
        sortable = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        keys = (sortable << 32) + (width - 1 - torch.arange(width, device=scores.device))
        indexes = width - 1 - (keys.topk(kept, dim=-1).values & 0xFFFFFFFF)
    else:
        indexes = (scores + 0.0).argsort(dim=-1, descending=True, stable=True)[:, :kept]
    best = scores.gather(-1, indexes)
    return F.pad(best, (0, k - kept), value=-math.inf), F.pad(indexes, (0, k - kept))
