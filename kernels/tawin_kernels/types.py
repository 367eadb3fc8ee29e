"""The small records that the ops take and return: TAWin (options), BeamStep and GRPOLoss (results).

They hold values and check them; they compute nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from .arguments import require_choice, require_int, require_number

Normalizer = Literal["vocab", "trie"]
RankTransform = Literal["identity", "log2", "fraction"]


@dataclass(frozen=True)
class TAWin:
    """The window of negatives that TAWin trains on (arXiv 2604.22504: threshold-adjusted windowed reweighting).

    anchor: zero-based rank among a group's negatives around which the window lies, >= 0. For Top-K: K - 1.
    window: the mass k that the unnormalised weights sum to, in negatives, > 0. From |N| on, every weight is 1.
    temperature: how softly the weights fall off with the distance to the anchor, > 0, in units of the transformed rank.
    rank_transform: phi, "identity" (rank), "log2" (log2(1 + rank)) or "fraction" (rank / number of negatives).
    """

    anchor: float = 2.0
    window: float = 1.0
    temperature: float = 1.0
    rank_transform: RankTransform = "identity"

    def __post_init__(self) -> None:
        require_number("TAWin.anchor", self.anchor, minimum=0.0)
        require_number("TAWin.window", self.window, above=0.0)
        require_number("TAWin.temperature", self.temperature, above=0.0)
        require_choice("TAWin.rank_transform", self.rank_transform, get_args(RankTransform))

    @classmethod
    def for_top_k(
        cls, k: int, *, window: float = 1.0, temperature: float = 1.0, rank_transform: RankTransform = "identity"
    ) -> TAWin:
        """The window around the K-th negative: anchor k - 1.

        k: length of the list that counts, at least 1. window, temperature, rank_transform: as in `TAWin`.
        """
        require_int("k", k, minimum=1)
        return cls(anchor=float(k - 1), window=window, temperature=temperature, rank_transform=rank_transform)


class BeamStep(NamedTuple):
    """The best candidates of one beam step, best first. Missing ones: score -inf, token -1, node -1, parent 0."""

    scores: torch.Tensor  # fp32 [B, beam_width] (fp64 where the hidden states were)
    tokens: torch.Tensor  # int64 [B, beam_width]
    nodes: torch.Tensor  # int64 [B, beam_width], the trie nodes reached
    parents: torch.Tensor  # int64 [B, beam_width], the beam that each was expanded from


class GRPOLoss(NamedTuple):
    """A group loss. Only `loss` carries a gradient."""

    loss: torch.Tensor  # scalar
    log_probs: torch.Tensor  # [B, G, L], 0 where masked out, or left out of tawin_grpo_loss by all_log_probs=False
    advantages: torch.Tensor  # [B, G], 0 where not valid
    kl: torch.Tensor  # scalar, mean k3 estimate over the masked-in tokens; 0 without ref_log_probs
    clip_fraction: torch.Tensor  # scalar, share of the masked-in tokens at which the clip is active
