"""The items that a trie is made of: their tokens one after another, checked.

What is wrong with them is said by the item's number and tokens.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from ..arguments import INT64, require_tensor, require_values

INT32_MAX = 2**31 - 1


def flatten(token_ids: Any, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of all items one after another (int64), and how many each item has (int64 [items])."""
    if isinstance(token_ids, torch.Tensor):
        require_tensor("token_ids", token_ids, dims="[items, L]", sizes=(None, None), dtypes=INT64)
        num_items, width = token_ids.shape
        if lengths is None:
            return token_ids.reshape(-1), token_ids.new_full((num_items,), width)
        like = ("token_ids", token_ids)
        require_tensor("lengths", lengths, dims="[items]", sizes=(num_items,), dtypes=INT64, device_of=like)
        require_values("lengths", (lengths >= 0) & (lengths <= width), lengths, f"lengths in [0, {width}]")
        return token_ids[torch.arange(width, device=token_ids.device) < lengths[:, None]], lengths
    if lengths is not None:
        raise TypeError(f"lengths: expected None with a list of token lists, got {type(lengths).__name__}")
    if not isinstance(token_ids, (list, tuple)):
        raise TypeError(
            f"token_ids: expected an int64 tensor [items, L] or a list of token lists, got {type(token_ids).__name__}"
        )
    try:
        flat = torch.tensor(list(chain.from_iterable(token_ids)))
        lengths = torch.tensor([len(item) for item in token_ids], dtype=torch.int64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"token_ids: expected a list of lists of int tokens ({error})") from error
    if len(flat) > 0 and flat.dtype != torch.int64:
        raise TypeError(f"token_ids: expected int tokens, got {str(flat.dtype).removeprefix('torch.')}")
    return flat.long(), lengths


def starts_of(lengths: torch.Tensor) -> torch.Tensor:
    return lengths.cumsum(0) - lengths


def append(flat: torch.Tensor, lengths: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All items with one more token."""
    longer = lengths + 1
    appended = flat.new_full((len(flat) + len(lengths),), token)
    is_old = torch.ones_like(appended, dtype=torch.bool)
    is_old[longer.cumsum(0) - 1] = False
    appended[is_old] = flat
    return appended, longer


def _name_item(flat: torch.Tensor, lengths: torch.Tensor, item: int) -> str:
    end = int(lengths[: item + 1].sum())
    return f"item {item} {flat[end - int(lengths[item]) : end].tolist()}"


def check_tokens(flat: torch.Tensor, lengths: torch.Tensor) -> None:
    if len(lengths) == 0:
        raise ValueError("token_ids: expected at least one item, got none")
    if bool((lengths == 0).any()):
        item = int((lengths == 0).nonzero()[0])
        raise ValueError(f"token_ids: expected at least one token in every item, got none in item {item}")
    bad = ((flat < 0) | (flat > INT32_MAX)).nonzero()
    if len(bad) > 0:
        item = int(torch.searchsorted(lengths.cumsum(0), bad[0], right=True))
        raise ValueError(
            f"token_ids: expected tokens in [0, 2**31), got {int(flat[bad[0]])} in {_name_item(flat, lengths, item)}"
        )


def check_prefixes(flat: torch.Tensor, lengths: torch.Tensor, is_prefix: torch.Tensor) -> None:
    """is_prefix: bool [items], whether other items go on from where the item ends."""
    if not bool(is_prefix.any()):
        return
    prefix = int(is_prefix.nonzero()[0])
    starts, length = starts_of(lengths), int(lengths[prefix])
    longer = (lengths > length).nonzero().squeeze(1)
    heads = flat[starts[longer, None] + torch.arange(length, device=flat.device)]
    own = flat[int(starts[prefix]) : int(starts[prefix]) + length]
    other = int(longer[(heads == own).all(1)][0])
    raise ValueError(
        f"token_ids: expected no item that is a proper prefix of another, got {_name_item(flat, lengths, prefix)} and "
        f"{_name_item(flat, lengths, other)}; give an end_token that no item contains, it is appended to every item"
    )
