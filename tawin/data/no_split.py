"""No split at all: everything is for training, of a model to serve once its figures are known from another run."""

from __future__ import annotations

import numpy as np

from ..config.data import RLPrompts
from .dataset import Dataset, Examples, Split, training_parts
from .ragged import Ragged


def split_nothing(
    dataset: Dataset,
    *,
    max_history: int = 10,
    rl_share: float = 1.0,
    rl_targets: int = 1,
    rl_seen: int = 0,
    rl_prompts: RLPrompts = "last",
    seed: int = 0,
) -> Split:
    """Parts all interactions among SFT and RL as `split_leave_one_out` does it with its training items."""
    train = Ragged.of(dataset.sequences)
    sft, rl = training_parts(
        dataset.user_ids,
        train,
        max_history=max_history,
        rl_share=rl_share,
        rl_targets=rl_targets,
        rl_seen=rl_seen,
        rl_prompts=rl_prompts,
        seed=seed,
    )
    nothing = np.zeros(0, dtype=np.int64)
    nobody = Examples(nothing, Ragged.of([]), nothing, seen=Ragged.of([]))
    return Split(sft=sft, rl=rl, valid=nobody, test=nobody, training=train)
