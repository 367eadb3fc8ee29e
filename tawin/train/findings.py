"""Where training windows are not finite: they are run once more, without gradient and dropout. Called by the guard."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import Config
from ..data.ragged import Ragged
from ..model.attention.causal import causal_log_probs
from ..model.policy import evaluating
from ..run.guards import Finding


@torch.no_grad()
def look_into_windows(
    model: nn.Module, catalog: Catalog, windows: Ragged, first_targets: np.ndarray, rows: np.ndarray, config: Config
) -> list[Finding]:
    """Hidden states and log-probs of the training windows at `rows`, as many of them a forward as in training."""
    found: list[Finding] = []
    device, size = next(model.parameters()).device, config.sft.batch_size
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        input_ids, attention_mask, labels = (
            part.to(device) for part in catalog.encode_windows(windows.take(chosen), first_targets[chosen])
        )
        with evaluating(model):
            hidden, log_probs = causal_log_probs(model, input_ids, attention_mask, labels, config.attention)
        found += _of_windows("hidden", ~hidden.isfinite() & attention_mask.bool()[..., None], chosen)
        found += _of_windows("log_probs", ~log_probs.isfinite(), chosen)
    return found


def _of_windows(name: str, is_wrong: Tensor, windows: np.ndarray) -> list[Finding]:
    """At most one finding. is_wrong: bool [B, ...]."""
    values = int(is_wrong.sum())
    wrong = is_wrong.flatten(1).any(1).cpu().numpy()
    return [Finding(name, values, windows=tuple(int(row) for row in windows[wrong]))] if values else []
