"""What is measured: each case is one piece of work, done our way and the peers' way, with a check that both agree.

The set-up is a small Qwen2 (hidden 256, 4 layers, 19,768 tokens: 19,000 of text and 256 for each of three levels of
semantic ids), random weights, fp32, sdpa attention. Heads and width of the MLP are those of `PolicyConfig` in proportion. The
catalogue is the Amazon Industrial one if the data folder is there, else one drawn with the same shape of trie. Nothing here
reads a clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tawin.data import load_dataset

# Scores are sums of three fp32 log-probs of about -10: one rounding of the sum is 2e-6, and batches of another shape add up
# in another order.
SCORE_TOLERANCE = 2e-5
LOG_PROB_TOLERANCE = 1e-5
# Of a gradient's norm. Each is a sum over up to 20,992 tokens, taken in another order: fp32's 6e-8 times about sqrt(20,992).
GRADIENT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PolicyShape:
    """The model of a case."""

    text_tokens: int = 19_000
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 768


@dataclass(frozen=True)
class Case:
    """One piece of work. `check` runs both ways and raises AssertionError unless they agree; it says how well they do."""

    name: str
    shape: str
    goal: float  # how many times as fast ours shall be
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    check: Callable[[], str]


def make_model(
    shape: PolicyShape, levels: int = 3, codes: int = 256, *, device: torch.device | str = "cpu", seed: int = 0
) -> Any:
    """A Qwen2 with random weights in eval mode."""
    config = Qwen2Config(
        vocab_size=shape.text_tokens + levels * codes,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval().to(device)


def semantic_ids(folder: Path | None = None) -> tuple[str, np.ndarray]:
    """Name and semantic ids, int64 [items, 3], of the industrial catalogue, or of a drawn one where there is no data.

    folder: holds `industrial`; None: the environment's TAWIN_DATA, or ../shared/data beside the repository.
    """
    if folder is None:
        folder = Path(os.environ.get("TAWIN_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if (folder / "industrial").is_dir():
        ids = load_dataset(folder / "industrial").items.semantic_ids
        assert ids is not None
        return "industrial", np.array(ids, dtype=np.int64)
    return "drawn like industrial", draw_semantic_ids()


def draw_semantic_ids(seed: int = 0) -> np.ndarray:
    """int64 [3686, 3]: 48 first codes, 2,295 pairs, 3,670 distinct ids and 16 repeated ones, as industrial has."""
    draw = np.random.default_rng(seed)
    pairs = np.concatenate((np.arange(48) * 256, 1 + draw.choice(48 * 255, 2295 - 48, replace=False) // 255 * 0))
    return pairs
