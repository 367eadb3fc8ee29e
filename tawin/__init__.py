"""tawin: train LLM-based recommenders by reinforcement learning, aimed at the Top-K that users see."""

from . import metrics
from .catalog import Catalog, load_catalog
from .enumerate import exact_metrics, exact_ranks, score_catalog
from .rollout import BeamOutput, beam_search

__all__ = [
    "BeamOutput",
    "Catalog",
    "beam_search",
    "exact_metrics",
    "exact_ranks",
    "load_catalog",
    "metrics",
    "score_catalog",
]
__version__ = "0.1.0"
