"""Evaluation: constrained beam search over the whole catalogue, and the rank of the item that each user took next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from . import metrics, stopping
from .catalog import Catalog
from .config import EvaluationConfig
from .data import Examples
from .distributed import ALONE, Processes
from .policy import evaluating
from .ragged import Ragged
from .rollout import beam_search


@dataclass(frozen=True)
class Recommendations:
    """Ranked items for some histories, best first."""

    items: np.ndarray  # int64 [N, W], index of the item, -1 = missing
    scores: np.ndarray  # fp32 [N, W]


def recommend(
    model: nn.Module,
    catalog: Catalog,
    histories: Sequence[np.ndarray],
    config: EvaluationConfig,
    *,
    description: str = "recommend",
    progress: bool = False,
    processes: Processes = ALONE,
) -> Recommendations:
    """The `config.beam_width` best items for each history; with `exclude_history` none of the history itself.

    Histories of like length share a batch, so little is padded. The model is put into eval mode and back. Of several
    processes each takes every so many batches, and all get the whole result: the very one that one process gets.

    Raises:
        Stopped: within `stopping.stop_on_signals`, where a signal asked for it.
    """
    device = next(model.parameters()).device
    histories = Ragged.of(histories)
    # Excluded items leave gaps: so many more beams that the list is full without them.
    spare = int(histories.lengths.max(initial=0)) if config.exclude_history else 0
    items = np.zeros((len(histories), config.beam_width), dtype=np.int64)
    scores = np.zeros((len(histories), config.beam_width), dtype=np.float32)
    batches = list(_batches(histories, config.batch_size))[processes.rank :: processes.count]
    for rows in tqdm(batches, desc=description, disable=None if progress else True, leave=False):
        if stopping.asked():
            break  # no answer is given then
        batch = histories.take(rows)
        input_ids, attention_mask = catalog.encode_histories(batch)
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as in training
        with evaluating(model), bf16:
            found = beam_search(
                model,
                input_ids.to(device),
                attention_mask.to(device),
                catalog.trie,
                config.beam_width + spare,
                normalizer=config.normalizer,
            )
        found_items, found_scores = found.item_ids.cpu().numpy(), found.scores.cpu().numpy()
        if config.exclude_history:
            for place, history in enumerate(batch):
                found_items[place], found_scores[place] = _without(found_items[place], found_scores[place], history)
        items[rows], scores[rows] = found_items[:, : config.beam_width], found_scores[:, : config.beam_width]
    stopping.stop_if_asked(processes)
    if processes.count > 1:  # rows of others are zero here: the sum over the processes is exact
        items = processes.sum(torch.from_numpy(items).to(processes.device)).cpu().numpy()
        scores = processes.sum(torch.from_numpy(scores).to(processes.device)).cpu().numpy()
    return Recommendations(items, scores)


def _batches(histories: Ragged, size: int) -> Iterator[np.ndarray]:
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _without(items: np.ndarray, scores: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the history's items; those behind move up, the end is filled with missing ones."""
    keep = ~np.isin(items, history)
    left = int(keep.sum())
    kept_items, kept_scores = np.full_like(items, -1), np.full_like(scores, -np.inf)
    kept_items[:left], kept_scores[:left] = items[keep], scores[keep]
    return kept_items, kept_scores


def sampled(examples: Examples, users: int | None, seed: int) -> Examples:
    """At most `users` of the examples, the same ones for the same seed; None: all."""
    return examples if users is None else examples.sample(users, seed)


def target_ranks(found: Recommendations, targets: np.ndarray) -> np.ndarray:
    """Zero-based rank of each target among the recommended items, -1 = not found. int64 [N]."""
    match = found.items == targets[:, None]
    return np.where(match.any(1), match.argmax(1), -1)


def evaluate(
    model: nn.Module,
    catalog: Catalog,
    examples: Examples,
    config: EvaluationConfig,
    *,
    description: str = "evaluate",
    progress: bool = False,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Recall, NDCG and WPAUC at 1, 3, 5, 10 over all examples; the processes share the work and all get the figures."""
    found = recommend(
        model, catalog, examples.histories, config, description=description, progress=progress, processes=processes
    )
    return metrics.ranking_metrics(target_ranks(found, examples.targets))
