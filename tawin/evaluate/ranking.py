"""Evaluation: constrained beam search over the whole catalogue, and the rank of the item that each user took next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tawin_kernels.top_k import top_k_stable
from torch import Tensor, nn
from tqdm import tqdm

from .. import metrics
from ..catalog.catalog import Catalog
from ..config import Config, EvaluationConfig
from ..data.dataset import Examples, Split
from ..data.ragged import Ragged
from ..model.policy import evaluating
from ..run import signals
from ..run.processes import ALONE, Processes
from ..search.completions import beam_search
from .exact import score_catalog
from .pool import pool_of

RARE = 0.005  # share of interactions that repeat an item below which a repetition is taken for noise
USERS_ASKED = 100_000  # for that share; their first ones
COUNTS_WEIGHT = 0.5  # chosen on valid: docs/LOG.md, "Counts beside the model"


@dataclass(frozen=True)
class Recommendations:
    """Ranked items for some histories, best first."""

    items: np.ndarray  # int64 [N, W], index of the item, -1 = missing; W is at most the items of the catalogue
    scores: np.ndarray  # fp32 [N, W]


def recommend(
    model: nn.Module,
    catalog: Catalog,
    histories: Sequence[np.ndarray],
    config: EvaluationConfig,
    *,
    seen: Sequence[np.ndarray] | None = None,
    among: np.ndarray | None = None,
    description: str = "recommend",
    progress: bool = False,
    processes: Processes = ALONE,
) -> Recommendations:
    """The `config.beam_width` best items for each history; with `excludes_history` none that the user has seen.

    By beam search; where the catalogue carries counts, by the model's share of every item mixed with theirs.

    seen: each user's items, of which the histories may be the last ones only; None: the histories.
    among: int64, ascending, distinct: the items that may be recommended; None: all. The search runs on their trie
        alone, so it is as exact as one over all, and what is found keeps its score.

    Histories of like length share a batch, so little is padded. The model is put into eval mode and back. Of several
    processes each takes every so many batches, and all get the whole result: the very one that one process gets.

    Raises:
        Stopped: within `signals.stop_on_signals`, where a signal asked for it.
    """
    device = next(model.parameters()).device
    histories = Ragged.of(histories)
    excluded = Ragged.of(histories if seen is None else seen) if config.excludes_history else None
    if excluded is not None and len(excluded) != len(histories):
        raise ValueError(f"seen: expected the items of each of {len(histories)} histories, got {len(excluded)}")
    weight = _counts_weight(catalog, config)
    pool = pool_of(catalog, among, config.normalizer, scored=weight > 0)
    width = min(config.beam_width, catalog.num_items if among is None else len(among))
    items = np.zeros((len(histories), width), dtype=np.int64)
    scores = np.zeros((len(histories), width), dtype=np.float32)
    batches = list(_batches(histories, config.batch_size))[processes.rank :: processes.count]
    for rows in tqdm(batches, desc=description, disable=None if progress else True, leave=False):
        if signals.asked():
            break  # no answer is given then
        batch = histories.take(rows)
        input_ids, attention_mask = catalog.encode_histories(batch)
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as in training
        left_out = pool.left_out(None if excluded is None else excluded.take(rows), len(rows))
        prompts = (input_ids.to(device), attention_mask.to(device))
        with evaluating(model), bf16:
            if weight > 0:
                best, log_p = _with_counts(model, *prompts, catalog, batch, config, weight, width, left_out)
            else:
                found = beam_search(model, *prompts, pool.trie, width, normalizer=config.normalizer, exclude=left_out)
                best, log_p = pool.items(found.item_ids), found.scores
        items[rows], scores[rows] = best.cpu().numpy(), log_p.cpu().numpy()
    signals.stop_if_asked(processes)
    if processes.count > 1:  # rows of others are zero here: the sum over the processes is exact
        items = processes.sum(torch.from_numpy(items).to(processes.device)).cpu().numpy()
        scores = processes.sum(torch.from_numpy(scores).to(processes.device)).cpu().numpy()
    return Recommendations(items, scores)


def _counts_weight(catalog: Catalog, config: EvaluationConfig) -> float:
    if catalog.transitions is not None:
        return COUNTS_WEIGHT if config.counts_weight is None else config.counts_weight
    if config.counts_weight:
        raise ValueError("evaluation.counts_weight: expected 0 for a catalogue that was made without counts")
    return 0.0


def _with_counts(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    catalog: Catalog,
    histories: Ragged,
    config: EvaluationConfig,
    weight: float,
    width: int,
    excluded: Sequence[np.ndarray] | None,
) -> tuple[Tensor, Tensor]:
    """The best items by the model's share mixed with that of the counts, -1 = missing, and the log of the mixed share.

    int64 and fp32 [B, width]. Where nothing was counted near a history, the model's share stands alone.
    """
    assert catalog.transitions is not None
    log_probs = score_catalog(model, input_ids, attention_mask, catalog, normalizer=config.normalizer)  # [B, items]
    counted = torch.from_numpy(catalog.transitions.shares(histories).toarray()).to(log_probs)
    weights = weight * (counted.sum(1, keepdim=True) > 0)  # [B, 1]
    scores = ((1.0 - weights) * log_probs.exp() + weights * counted).log()
    if excluded is not None:
        gone = Ragged.of(excluded)
        users = np.repeat(np.arange(len(gone)), gone.lengths)
        scores[torch.from_numpy(users), torch.from_numpy(gone.flat().astype(np.int64))] = -torch.inf
    best, items = top_k_stable(scores.float(), width)
    return items.masked_fill(best == -torch.inf, -1), best


def _batches(histories: Ragged, size: int) -> Iterator[np.ndarray]:
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def decided(config: Config, split: Split) -> Config:
    """The config with `evaluation.exclude_history` decided where it is "auto": by the repeats in the training data."""
    if config.evaluation.exclude_history != "auto":
        return config
    choice: Literal["yes", "no"] = "yes" if repeat_share(split.training) < RARE else "no"
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, exclude_history=choice))


def repeat_share(sequences: Sequence[np.ndarray]) -> float:
    """Of the interactions behind a user's first, the share with an item that the user had taken before.

    Of at most USERS_ASKED sequences; 0 where no sequence has two items.
    """
    asked = Ragged.of(sequences)[:USERS_ASKED]
    items = asked.flat().astype(np.int64)
    taken = np.repeat(np.arange(len(asked)), asked.lengths) * (items.max(initial=0) + 1) + items  # user and item in one
    later = len(items) - int((asked.lengths > 0).sum())
    return (len(items) - len(np.unique(taken))) / later if later else 0.0


def sampled(examples: Examples, users: int | None, seed: int) -> Examples:
    """At most `users` of the examples, the same ones for the same seed; None: all."""
    return examples if users is None else examples.sample(users, seed)


def target_ranks(found: Recommendations, targets: np.ndarray) -> np.ndarray:
    """Zero-based rank of each target among the recommended items, -1 = not found. int64 [N]."""
    match = found.items == targets[:, None]
    return np.where(match.any(1), match.argmax(1), -1)


def ranks_of(
    model: nn.Module,
    catalog: Catalog,
    examples: Examples,
    config: EvaluationConfig,
    *,
    description: str = "evaluate",
    progress: bool = False,
    processes: Processes = ALONE,
) -> np.ndarray:
    """Zero-based rank of each example's target, -1 = not found; int64 [N]. Otherwise as `evaluate`."""
    found = recommend(
        model,
        catalog,
        examples.histories,
        config,
        seen=examples.seen,
        description=description,
        progress=progress,
        processes=processes,
    )
    return target_ranks(found, examples.targets)


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
    ranks = ranks_of(model, catalog, examples, config, description=description, progress=progress, processes=processes)
    return metrics.ranking_metrics(ranks)
