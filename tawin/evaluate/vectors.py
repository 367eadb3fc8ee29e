"""Users and items as vectors of the model's hidden size, for an index of nearest neighbours or another ranker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..catalog.catalog import Catalog
from ..data.ragged import Ragged
from ..model.backbone import backbone
from ..model.policy import evaluating
from ..model.tree_attention import prefill


@torch.no_grad()
def user_vectors(
    model: nn.Module, catalog: Catalog, histories: Sequence[np.ndarray], *, batch_size: int = 64
) -> np.ndarray:
    """The state at the end of each history's prompt, from which the model predicts the next item's first token.

    Args:
        model: any causal LM that was trained on the catalogue; put into eval mode and back.
        catalog: on the device of the model.
        histories: for each user the items that the prompt shows (rows of the catalogue, oldest first, at least one).
        batch_size: histories of one forward.

    Returns:
        fp32 [N, H].

    Raises:
        ValueError: a history without an item, or with rows that the catalogue does not have.
    """
    ragged = Ragged.of(histories)
    flat = ragged.flat()
    if len(ragged) and ragged.lengths.min() == 0:
        raise ValueError("histories: expected at least one item in each, got an empty one")
    if len(flat) and (flat.min() < 0 or flat.max() >= catalog.num_items):
        raise ValueError(f"histories: expected items in [0, {catalog.num_items}), got {flat.min()}..{flat.max()}")
    parts, device = backbone(model), next(model.parameters()).device
    order = np.argsort(ragged.lengths, kind="stable")  # of like length: little padding
    found = np.zeros((len(ragged), parts.head_in(next(model.parameters()).dtype)[0].shape[1]), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = (part.to(device) for part in catalog.encode_histories(ragged.take(rows)))
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as in `evaluate`
        with evaluating(model), bf16:
            found[rows] = prefill(parts, input_ids, attention_mask).last_hidden.float().cpu().numpy()
    return found


@torch.no_grad()
def item_vectors(model: nn.Module, catalog: Catalog, *, batch_size: int = 64) -> np.ndarray:
    """A vector of each item, to go with those of users.

    Where every item is one token: its row of the LM head. Its product with a user's vector is the item's logit, so
    the nearest items by inner product are those with the highest log p, exactly (of a head without bias, as the
    decoders of transformers have it). Else, of semantic ids and titles, an item has no such row: its vector is that of
    a user who took it alone, and products with users' vectors are a likeness, no probability.

    Args:
        model, catalog, batch_size: as in `user_vectors`.

    Returns:
        fp32 [items, H], in the catalogue's order.
    """
    if catalog.max_item_length > 1:
        return user_vectors(model, catalog, list(np.arange(catalog.num_items)[:, None]), batch_size=batch_size)
    weight, _ = backbone(model).head_in(torch.float32)
    return weight[catalog.token_ids[:, 0]].float().cpu().numpy()
