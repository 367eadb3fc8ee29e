"""The argument checks of each op: shapes, dtypes, devices and options always, tensor values on the CPU.

Both implementations of an op call the same check, so they refuse the same input in the same words.
"""

from __future__ import annotations

from typing import get_args

import torch

from .arguments import (
    BOOL,
    FLOATING,
    IGNORED_TOKEN,
    INT64,
    require_choice,
    require_int,
    require_number,
    require_same_dtype,
    require_tensor,
    require_values,
    values_are_checked,
)
from .ops.loss.types import LOSS_KINDS, ImportanceLevel
from .trie import ItemTrie
from .types import Normalizer, TAWin

MIN_TEMPERATURE = 1e-30  # below it, logits of fp32 divided by it overflow, and so does its own reciprocal


def check_beam_step(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    trie: ItemTrie,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    beam_width: int,
    normalizer: str,
    temperature: float,
    bias: torch.Tensor | None,
    depth: int | None,
    check_values: bool | None,
) -> None:
    require_tensor("hidden", hidden, dims="[B, W, H]", sizes=(None, None, None), dtypes=FLOATING)
    _check_head(hidden, lm_head_weight, bias, temperature)
    _check_trie(trie, hidden, lm_head_weight)
    like = ("hidden", hidden)
    sizes = hidden.shape[:2]
    require_tensor("nodes", nodes, dims="[B, W]", sizes=sizes, dtypes=INT64, device_of=like)
    score_dtypes = (torch.float32, torch.float64) if hidden.dtype == torch.float64 else (torch.float32,)
    require_tensor("scores", scores, dims="[B, W]", sizes=sizes, dtypes=score_dtypes, device_of=like)
    require_int("beam_width", beam_width, minimum=1)
    require_choice("normalizer", normalizer, get_args(Normalizer))
    first, end, expected = 0, trie.num_nodes, f"nodes of the trie in [-1, {trie.num_nodes})"
    if depth is not None:
        require_int("depth", depth, minimum=0)
        if depth >= trie.max_depth:
            raise ValueError(f"depth: expected less than that of the trie, {trie.max_depth}, got {depth}")
        first, end = trie.level_offsets[depth : depth + 2]
        expected = f"-1 or nodes of depth {depth} in [{first}, {end})"
    if values_are_checked(check_values, hidden):
        require_values("nodes", (nodes == -1) | (nodes >= first) & (nodes < end), nodes, expected)
        require_values("scores", ~scores.isnan(), scores, "no NaN (a dead beam has -inf)")


def check_linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    temperature: float,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    normalizer: str,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
    with_entropy: bool,
    check_values: bool | None,
) -> None:
    if isinstance(hidden, torch.Tensor) and hidden.dim() == 0:
        raise ValueError("hidden: expected shape [*N, H], got a scalar")
    leading = (None,) * (hidden.dim() - 1) if isinstance(hidden, torch.Tensor) else ()
    dims, sizes = ("[*N, H]", (*leading, None)) if rows is None else ("[R, H]", (None, None))
    require_tensor("hidden", hidden, dims=dims, sizes=sizes, dtypes=FLOATING)
    _check_head(hidden, lm_head_weight, bias, temperature)
    wanted = hidden.shape[:-1]
    if rows is not None:
        wanted = token_ids.shape if isinstance(token_ids, torch.Tensor) else ()
    require_tensor("token_ids", token_ids, dims="[*N]", sizes=wanted, dtypes=INT64, device_of=("hidden", hidden))
    check_rows_and_normalizer(hidden, "[*N]", wanted, lm_head_weight, rows, normalizer, trie, nodes)
    if not isinstance(with_entropy, bool):
        raise TypeError(f"with_entropy: expected True or False, got {with_entropy!r}")
    if values_are_checked(check_values, hidden):
        _check_token_values(token_ids, lm_head_weight)
        check_row_and_node_values(token_ids, hidden, rows, trie, nodes)


def check_tawin_weights(scores: torch.Tensor, negatives: torch.Tensor, tawin: TAWin, check_values: bool | None) -> None:
    require_tensor("scores", scores, dims="[B, G]", sizes=(None, None), dtypes=FLOATING)
    require_tensor("negatives", negatives, dims="[B, G]", sizes=scores.shape, dtypes=BOOL, device_of=("scores", scores))
    _check_group_size("scores", scores)
    _check_tawin(tawin)
    if values_are_checked(check_values, scores):
        require_values("scores", ~scores.isnan(), scores, "no NaN")


def check_group_advantages(
    rewards: torch.Tensor,
    scores: torch.Tensor | None,
    tawin: TAWin | None,
    normalize_std: bool,
    eps: float,
    valid: torch.Tensor | None,
    check_values: bool | None,
) -> None:
    require_tensor("rewards", rewards, dims="[B, G]", sizes=(None, None), dtypes=FLOATING)
    _check_advantage_options(rewards, scores, tawin, normalize_std, eps)
    if valid is not None:
        like = ("rewards", rewards)
        require_tensor("valid", valid, dims="[B, G]", sizes=rewards.shape, dtypes=BOOL, device_of=like)
    if values_are_checked(check_values, rewards):
        _check_reward_values(rewards, scores, valid)


def check_grpo_loss(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    valid: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
    importance_level: str,
    check_values: bool | None,
) -> None:
    require_tensor("log_probs", log_probs, dims="[B, G, L]", sizes=(None, None, None), dtypes=FLOATING)
    like = ("log_probs", log_probs)
    require_tensor("mask", mask, dims="[B, G, L]", sizes=log_probs.shape, dtypes=BOOL, device_of=like)
    require_tensor("advantages", advantages, dims="[B, G]", sizes=log_probs.shape[:2], dtypes=FLOATING, device_of=like)
    _check_loss_options(
        like,
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        valid,
        denominator,
        importance_level,
    )
    if values_are_checked(check_values, log_probs):
        _check_denominator_value(denominator)


def check_tawin_grpo_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    rewards: torch.Tensor | None,
    scores: torch.Tensor | None,
    tawin: TAWin | None,
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    temperature: float,
    bias: torch.Tensor | None,
    normalize_std: bool,
    eps: float,
    valid: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
    rows: torch.Tensor | None,
    normalizer: str,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
    all_log_probs: bool,
    importance_level: str,
    advantages: torch.Tensor | None,
    check_values: bool | None,
) -> None:
    like = ("hidden", hidden)
    if rows is None:
        require_tensor("hidden", hidden, dims="[B, G, L, H]", sizes=(None, None, None, None), dtypes=FLOATING)
        sizes = hidden.shape[:3]
        require_tensor("token_ids", token_ids, dims="[B, G, L]", sizes=sizes, dtypes=INT64, device_of=like)
    else:
        require_tensor("hidden", hidden, dims="[R, H]", sizes=(None, None), dtypes=FLOATING)
        require_tensor("token_ids", token_ids, dims="[B, G, L]", sizes=(None, None, None), dtypes=INT64, device_of=like)
        sizes = token_ids.shape
    _check_head(hidden, lm_head_weight, bias, temperature)
    check_rows_and_normalizer(hidden, "[B, G, L]", sizes, lm_head_weight, rows, normalizer, trie, nodes)
    if not isinstance(all_log_probs, bool):
        raise TypeError(f"all_log_probs: expected True or False, got {all_log_probs!r}")
    require_tensor("mask", mask, dims="[B, G, L]", sizes=sizes, dtypes=BOOL, device_of=like)
    if advantages is not None:
        require_tensor("advantages", advantages, dims="[B, G]", sizes=sizes[:2], dtypes=FLOATING, device_of=like)
        _check_group_size("advantages", advantages)
    else:
        require_tensor("rewards", rewards, dims="[B, G]", sizes=sizes[:2], dtypes=FLOATING, device_of=like)
        assert rewards is not None
        _check_advantage_options(rewards, scores, tawin, normalize_std, eps)
    _check_loss_options(
        ("mask", mask),
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        valid,
        denominator,
        importance_level,
    )
    if values_are_checked(check_values, hidden):
        exists = mask & (token_ids != IGNORED_TOKEN)
        valid = exists.any(-1) if valid is None else valid
        read_ids = token_ids.masked_fill(~(exists & valid[..., None]), IGNORED_TOKEN)
        _check_token_values(read_ids, lm_head_weight)
        check_row_and_node_values(read_ids, hidden, rows, trie, nodes)
        if advantages is not None:
            require_values("advantages", advantages.isfinite() | ~valid, advantages, "finite advantages")
        elif rewards is not None:
            _check_reward_values(rewards, scores, valid)
        _check_denominator_value(denominator)


def check_rows_and_normalizer(
    hidden: torch.Tensor,
    dims: str,
    sizes: torch.Size | tuple[int, ...],
    lm_head_weight: torch.Tensor,
    rows: torch.Tensor | None,
    normalizer: str,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
) -> None:
    """dims, sizes: those of token_ids, as the documentation writes them and as they are."""
    like = ("hidden", hidden)
    if rows is not None:
        require_tensor("rows", rows, dims=dims, sizes=sizes, dtypes=INT64, device_of=like)
    require_choice("normalizer", normalizer, get_args(Normalizer))
    if normalizer != "trie":
        for name, value in (("trie", trie), ("nodes", nodes)):
            if value is not None:
                raise ValueError(f"{name}: expected None with normalizer {normalizer!r}, got {type(value).__name__}")
        return
    _check_trie(trie, hidden, lm_head_weight)
    require_tensor("nodes", nodes, dims=dims, sizes=sizes, dtypes=INT64, device_of=like)


def check_row_and_node_values(
    token_ids: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
) -> None:
    """Of the tokens that count (token_ids, -100 where none): rows of hidden, and children of nodes."""
    ignored = token_ids == IGNORED_TOKEN
    if rows is not None:
        R = len(hidden)
        require_values("rows", ignored | ((rows >= 0) & (rows < R)), rows, f"rows of hidden in [0, {R})")
    if trie is not None and nodes is not None:
        in_trie = (nodes >= 0) & (nodes < trie.num_nodes)
        require_values("nodes", ignored | in_trie, nodes, f"nodes of the trie in [0, {trie.num_nodes})")
        is_child = trie.child(nodes.masked_fill(ignored, -1), token_ids) >= 0
        require_values("token_ids", ignored | is_child, token_ids, "a child of its node in the trie")


def _check_trie(trie: ItemTrie | None, hidden: torch.Tensor, lm_head_weight: torch.Tensor) -> None:
    if not isinstance(trie, ItemTrie):
        raise TypeError(f"trie: expected an ItemTrie, got {type(trie).__name__}")
    if trie.device != hidden.device:
        raise ValueError(f"trie: expected device {hidden.device} as hidden, got {trie.device}; use trie.to(device)")
    vocabulary = len(lm_head_weight)
    if trie.max_token >= vocabulary:
        raise ValueError(
            f"trie: expected tokens below the {vocabulary} rows of lm_head_weight, got token {trie.max_token}"
        )


def _check_head(
    hidden: torch.Tensor, lm_head_weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> None:
    like = ("hidden", hidden)
    require_tensor(
        "lm_head_weight",
        lm_head_weight,
        dims="[V, H]",
        sizes=(None, hidden.shape[-1]),
        dtypes=FLOATING,
        device_of=like,
    )
    require_same_dtype("lm_head_weight", lm_head_weight, "hidden", hidden)
    if 0 in lm_head_weight.shape:
        raise ValueError(
            f"lm_head_weight: expected at least one token and one hidden dimension, got {list(lm_head_weight.shape)}"
        )
    if bias is not None:
        require_tensor("bias", bias, dims="[V]", sizes=lm_head_weight.shape[:1], dtypes=FLOATING, device_of=like)
        require_same_dtype("bias", bias, "hidden", hidden)
    require_number("temperature", temperature, above=0.0)
    require_number("temperature", temperature, minimum=MIN_TEMPERATURE)


def _check_group_size(name: str, tensor: torch.Tensor) -> None:
    if tensor.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one completion a group, got shape {list(tensor.shape)}")


def _check_tawin(tawin: TAWin) -> None:
    if not isinstance(tawin, TAWin):
        raise TypeError(f"tawin: expected a TAWin, got {type(tawin).__name__}")


def _check_advantage_options(
    rewards: torch.Tensor, scores: torch.Tensor | None, tawin: TAWin | None, normalize_std: bool, eps: float
) -> None:
    _check_group_size("rewards", rewards)
    if scores is not None:
        like = ("rewards", rewards)
        require_tensor("scores", scores, dims="[B, G]", sizes=rewards.shape, dtypes=FLOATING, device_of=like)
    if tawin is not None:
        _check_tawin(tawin)
        if scores is None:
            raise ValueError("scores: expected a tensor [B, G] to rank the negatives of tawin by, got None")
    if not isinstance(normalize_std, bool):
        raise TypeError(f"normalize_std: expected True or False, got {normalize_std!r}")
    require_number("eps", eps, minimum=0.0)


def _check_loss_options(
    like: tuple[str, torch.Tensor],
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    valid: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
    importance_level: str,
) -> None:
    """like: the name and tensor [B, G, L] whose sizes and device the others have."""
    sizes = like[1].shape
    for name, tensor in (("old_log_probs", old_log_probs), ("ref_log_probs", ref_log_probs)):
        if tensor is not None:
            require_tensor(name, tensor, dims="[B, G, L]", sizes=sizes, dtypes=FLOATING, device_of=like)
    require_choice("loss_type", loss_type, tuple(LOSS_KINDS))
    require_choice("importance_level", importance_level, get_args(ImportanceLevel))
    require_number("epsilon_low", epsilon_low, minimum=0.0)
    require_number("epsilon_high", epsilon_high, minimum=0.0)
    if LOSS_KINDS[loss_type].caps_ratio and epsilon_high < 1:
        raise ValueError(
            f"epsilon_high: expected a number >= 1 with loss_type {loss_type!r}, whose largest ratio it is (5 is "
            f"customary), got {epsilon_high!r}"
        )
    require_number("beta", beta, minimum=0.0)
    if beta > 0 and ref_log_probs is None:
        raise ValueError(f"ref_log_probs: expected a tensor [B, G, L] with beta {beta:g}, got None")
    if valid is not None:
        require_tensor("valid", valid, dims="[B, G]", sizes=sizes[:2], dtypes=BOOL, device_of=like)
    if isinstance(denominator, torch.Tensor):
        require_tensor("denominator", denominator, dims="[]", sizes=(), dtypes=(*FLOATING, *INT64), device_of=like)
    elif denominator is not None:
        require_number("denominator", denominator, above=0.0)


def _check_token_values(token_ids: torch.Tensor, lm_head_weight: torch.Tensor) -> None:
    vocabulary = len(lm_head_weight)
    is_token = ((token_ids >= 0) & (token_ids < vocabulary)) | (token_ids == IGNORED_TOKEN)
    require_values("token_ids", is_token, token_ids, f"tokens in [0, {vocabulary}) or {IGNORED_TOKEN}")


def _check_reward_values(rewards: torch.Tensor, scores: torch.Tensor | None, valid: torch.Tensor | None) -> None:
    """Completions that are not valid do not exist: their values are not looked at."""
    absent = torch.zeros_like(rewards, dtype=torch.bool) if valid is None else ~valid
    require_values("rewards", rewards.isfinite() | absent, rewards, "finite rewards")
    if scores is not None:
        require_values("scores", ~scores.isnan() | absent, scores, "no NaN")


def _check_denominator_value(denominator: float | torch.Tensor | None) -> None:
    if isinstance(denominator, torch.Tensor):
        require_number("denominator", denominator.item(), above=0.0)
