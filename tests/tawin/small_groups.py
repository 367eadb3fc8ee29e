"""A catalogue of seven items, and groups rolled out on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tawin_kernels import ItemTrie
from torch import nn

from tawin.catalog.catalog import Catalog
from tawin.config import GRPOConfig
from tawin.rl.groups import Groups
from tawin.rl.rollout import roll_out

from .models import ragged_prompts, tiny_model


def small_catalog() -> Catalog:
    """Seven items of two or three tokens; items 1 and 4 share a sequence."""
    tokens = torch.tensor([[5, 6, -1], [7, 8, -1], [9, 10, 11], [9, 10, 12], [7, 8, -1], [13, 14, -1], [15, 5, -1]])
    trie = ItemTrie.from_sequences(tokens, lengths=(tokens >= 0).sum(1))
    return Catalog(np.arange(7), None, None, tokens, trie, trie.leaf_of_item, (1,), 0, None)


def rolled_out(config: GRPOConfig, targets: Any, *, seed: int = 0) -> tuple[nn.Module, Groups]:
    model = tiny_model("qwen2", seed=seed)
    input_ids, mask = ragged_prompts(len(targets), 5)
    generator = torch.Generator().manual_seed(0)
    return model, roll_out(model, small_catalog(), input_ids, mask, torch.tensor(targets), config, generator)
