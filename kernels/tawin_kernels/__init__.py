"""Kernels for reinforcement learning of generative recommenders: trie-constrained beams, log-probs, TAWin, GRPO losses.

Each op checks its arguments and picks an implementation by device; `reference` holds every op in plain PyTorch.
"""

from . import reference
from .ops.advantage import group_advantages, tawin_weights
from .ops.beam_step import beam_step
from .ops.log_prob import linear_log_probs
from .ops.loss.grpo import grpo_loss
from .ops.loss.tawin_grpo import tawin_grpo_loss
from .tested_versions import warn_outside_tested
from .trie import ItemTrie
from .types import BeamStep, GRPOLoss, TAWin

__all__ = [
    "BeamStep",
    "GRPOLoss",
    "ItemTrie",
    "TAWin",
    "beam_step",
    "group_advantages",
    "grpo_loss",
    "linear_log_probs",
    "reference",
    "tawin_grpo_loss",
    "tawin_weights",
]
__version__ = "0.1.0"

warn_outside_tested()
