"""tawin: train LLM-based recommenders by reinforcement learning, aimed at the Top-K that users see.

The names below are imported when they are first used: `tawin.integrations.verl` needs torch and triton alone, and
verl pins a transformers that is older than the trainer's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import metrics
    from .catalog.catalog import Catalog, load_catalog
    from .evaluate.candidates import score_candidates
    from .evaluate.exact import exact_metrics, exact_ranks, score_catalog
    from .evaluate.vectors import item_vectors, user_vectors
    from .search.completions import BeamOutput, beam_search

__all__ = [
    "BeamOutput",
    "Catalog",
    "beam_search",
    "exact_metrics",
    "exact_ranks",
    "item_vectors",
    "load_catalog",
    "metrics",
    "score_candidates",
    "score_catalog",
    "user_vectors",
]
__version__ = "0.1.0"

_MODULES = {
    "BeamOutput": "search.completions",
    "Catalog": "catalog.catalog",
    "beam_search": "search.completions",
    "exact_metrics": "evaluate.exact",
    "exact_ranks": "evaluate.exact",
    "item_vectors": "evaluate.vectors",
    "load_catalog": "catalog.catalog",
    "metrics": "metrics",
    "score_candidates": "evaluate.candidates",
    "score_catalog": "evaluate.exact",
    "user_vectors": "evaluate.vectors",
}


def _imported(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        from .environment import missing_extra

        if line := missing_extra(error, "train"):
            raise ModuleNotFoundError(f"{__name__}.{name}: {line}", name=error.name) from None
        raise
    value = module if name == "metrics" else getattr(module, name)
    globals()[name] = value  # from now on found without a detour
    return value


if not TYPE_CHECKING:  # a type checker is to go on refusing names that do not exist
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
