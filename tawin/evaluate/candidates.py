"""Exact log p of given items behind each history: no search, and nothing of the rest of the catalogue is run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tawin_kernels.types import Normalizer
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..data.ragged import Ragged
from ..model.backbone import backbone
from ..model.policy import evaluating
from ..model.tree_attention import prefill
from ..search.completions import score_sequences

CHUNK = 256  # candidates of each history whose tokens are one tree


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    catalog: Catalog,
    histories: Sequence[np.ndarray],
    candidates: Sequence[np.ndarray],
    *,
    normalizer: Normalizer = "vocab",
    batch_size: int = 64,
) -> list[np.ndarray]:
    """log p of each candidate behind its history: what `beam_search` scores it by where it finds it.

    A history is run once. Its candidates are a tree of tokens behind it, in which a prefix that several begin with is
    run once per 256 candidates, neighbours in the order of their tokens.

    Args:
        model: any causal LM that was trained on the catalogue; put into eval mode and back.
        catalog: on the device of the model.
        histories: for each user the items that the prompt shows (rows of the catalogue, oldest first, at least one);
            cut to the model's `max_history` by the caller.
        candidates: for each history the items to score (rows of the catalogue), in any order, repeated or none.
        normalizer: what each log p is a softmax over: the vocabulary, or the children of the node before the token.
        batch_size: histories of one forward.

    Returns:
        For each history fp32 [candidates], nats, in their order. Items that share a sequence have one score.

    Raises:
        ValueError: not as many lists of candidates as histories, a history without an item, rows that the catalogue
            does not have, another normalizer, a batch size below 1.
    """
    _check(catalog, histories, candidates, normalizer, batch_size)
    device = next(model.parameters()).device
    shown = Ragged.of(histories)
    wanted = [np.asarray(rows, dtype=np.int64) for rows in candidates]
    order = np.argsort(shown.lengths, kind="stable")  # of like length: little padding
    rank = _token_order(catalog)
    found: list[np.ndarray] = [np.zeros(len(rows), dtype=np.float32) for rows in wanted]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = (part.to(device) for part in catalog.encode_histories(shown.take(rows)))
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as in `evaluate`
        sorted_by_tokens = [np.argsort(rank[wanted[row]], kind="stable") for row in rows]
        most = max(map(len, sorted_by_tokens))
        with evaluating(model), bf16:
            prompt = prefill(backbone(model), input_ids, attention_mask) if most else None
            for first in range(0, most, CHUNK):
                places = [each[first : first + CHUNK] for each in sorted_by_tokens]
                items = [wanted[row][place] for row, place in zip(rows, places, strict=True)]
                scores = score_sequences(
                    model,
                    input_ids,
                    attention_mask,
                    _tokens(catalog, items).to(device),
                    normalizer=normalizer,
                    trie=catalog.trie if normalizer == "trie" else None,
                    prompt=prompt,
                )
                for row, place, own in zip(rows, places, scores.float().cpu().numpy(), strict=True):
                    found[row][place] = own[: len(place)]
    return found


def _token_order(catalog: Catalog) -> np.ndarray:
    """int64 [items], the place of each item in the order of its tokens."""
    tokens = catalog.token_ids.cpu().numpy()
    rank = np.empty(len(tokens), dtype=np.int64)
    rank[np.lexsort(tokens.T[::-1])] = np.arange(len(tokens))
    return rank


def _tokens(catalog: Catalog, items: Sequence[np.ndarray]) -> Tensor:
    """int64 [B, G, L], -100 behind an item's tokens and in place of missing candidates."""
    tokens = torch.full((len(items), max(map(len, items)), catalog.max_item_length), -100)
    table = catalog.token_ids.cpu()
    for row, own in enumerate(items):
        tokens[row, : len(own)] = table[torch.from_numpy(own)]
    return tokens.masked_fill(tokens < 0, -100)


def _check(
    catalog: Catalog,
    histories: Sequence[np.ndarray],
    candidates: Sequence[np.ndarray],
    normalizer: str,
    batch_size: int,
) -> None:
    if len(histories) != len(candidates):
        raise ValueError(f"candidates: expected a list for each of {len(histories)} histories, got {len(candidates)}")
    if normalizer not in ("vocab", "trie"):
        raise ValueError(f"normalizer: expected 'vocab' or 'trie', got {normalizer!r}")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size: expected an int of at least 1, got {batch_size!r}")
    if any(len(each) == 0 for each in histories):
        raise ValueError("histories: expected at least one item in each, got an empty one")
    for name, lists in (("histories", histories), ("candidates", candidates)):
        flat = Ragged.of(lists).flat()
        if len(flat) and (flat.min() < 0 or flat.max() >= catalog.num_items):
            raise ValueError(f"{name}: expected items in [0, {catalog.num_items}), got {flat.min()}..{flat.max()}")
