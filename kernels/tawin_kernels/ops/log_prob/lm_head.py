"""The LM head in plain PyTorch, in pieces: log-probs of given tokens without the logits of all rows at once.

Nothing is checked here: arguments come in as the public ops let them in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ...arguments import IGNORED_TOKEN
from ...trie import ItemTrie
from ...types import Normalizer

# The logits of one piece of rows have at most this many elements (128 MiB in fp32).
MAX_LOGITS = 2**25


def accumulation_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def token_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
    *,
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
) -> torch.Tensor:
    """log p(token_ids | hidden), fp32 or fp64 [*N], differentiable; 0 at ignored tokens, whose hidden is not read.

    hidden [*N, H], token_ids [*N]; with rows int64 [*N], hidden [R, H] and token i is predicted by hidden[rows[i]].
    normalizer "trie": over the children of nodes [*N], of which token_ids are some.
    """
    flat_tokens = token_ids.reshape(-1)
    pairs = (flat_tokens != IGNORED_TOKEN).nonzero().squeeze(1)  # [P]
    tokens = flat_tokens[pairs]
    states = hidden.reshape(-1, hidden.shape[-1])
    log_probs: torch.Tensor  # [P]
    if normalizer == "trie":
        assert trie is not None and nodes is not None
        own = states.index_select(0, pairs if rows is None else rows.reshape(-1)[pairs])
        log_probs = _among_children(own, lm_head_weight, bias, tokens, trie, nodes.reshape(-1)[pairs], temperature)
    elif rows is None:
        log_probs = _row_log_probs(states.index_select(0, pairs), lm_head_weight, bias, tokens, temperature)
    else:
        # Each distinct state meets the head once; the pairs follow in the order of their state.
        distinct, state_of_pair = rows.reshape(-1)[pairs].unique(return_inverse=True)
        order = state_of_pair.argsort(stable=True)
        log_probs = _shared_row_log_probs(
            states.index_select(0, distinct),
            lm_head_weight,
            bias,
            tokens[order],
            torch.bincount(state_of_pair, minlength=len(distinct)),
            temperature,
        )
        pairs = pairs[order]
    zeros = torch.zeros(token_ids.numel(), dtype=log_probs.dtype, device=hidden.device)
    return zeros.index_copy(0, pairs, log_probs).view(token_ids.shape)


@torch.no_grad()
def token_entropies(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
    rows: torch.Tensor | None,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
) -> torch.Tensor:
    """Entropy in nats of the distribution of each token, of the shape of token_ids; 0 at ignored tokens."""
    pairs = (token_ids.reshape(-1) != IGNORED_TOKEN).nonzero().squeeze(1)
    own = hidden.reshape(-1, hidden.shape[-1])[pairs if rows is None else rows.reshape(-1)[pairs]]
    weight, wide_bias, at_once = _widened(lm_head_weight, bias)
    own_nodes = pairs.split(at_once) if nodes is None else nodes.reshape(-1)[pairs].split(at_once)
    pieces = [weight.new_zeros(0)]
    for some_hidden, some_nodes in zip(own.split(at_once), own_nodes, strict=True):
        logits = _logits(some_hidden.to(weight.dtype), weight, wide_bias, temperature)  # [some, V]
        if trie is not None:
            row_of_child, edges = trie.edges_below(some_nodes)
            is_child = torch.zeros_like(logits, dtype=torch.bool)
            is_child[row_of_child, trie.edge_tokens[edges].long()] = True
            logits = logits.masked_fill(~is_child, -math.inf)
        log_probs = logits.log_softmax(-1)
        terms = (log_probs.exp() * log_probs).masked_fill(log_probs == -math.inf, 0.0)  # 0 log 0 = 0, NaN stays
        pieces.append(-terms.sum(-1))
    entropies = weight.new_zeros(token_ids.numel())
    return entropies.index_copy(0, pairs, torch.cat(pieces)).view(token_ids.shape)


def _among_children(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    trie: ItemTrie,
    nodes: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """log p(token_ids[i] | hidden[i]) over the children of nodes[i], fp32 or fp64 [rows]. hidden [rows, H]."""
    used = trie.used_tokens.long()  # no other token can be a child
    used_bias = None if bias is None else bias.index_select(0, used)
    weight, wide_bias, at_once = _widened(lm_head_weight.index_select(0, used), used_bias)
    pieces = [weight.new_zeros(0)]
    for some_hidden, some_tokens, some_nodes in zip(
        hidden.split(at_once), token_ids.split(at_once), nodes.split(at_once), strict=True
    ):
        logits = _logits(some_hidden.to(weight.dtype), weight, wide_bias, temperature)  # [some, U]
        # What is no child of its node has no probability; a node that does not exist stands for the root meanwhile.
        is_node = (some_nodes >= 0) & (some_nodes < trie.num_nodes)
        is_child = is_node & (trie.child(some_nodes.where(is_node, 0), some_tokens) >= 0)
        row_of_child, edges = trie.edges_below(some_nodes.where(is_node, 0))
        of_children = logits[row_of_child, trie.token_slots[trie.edge_tokens[edges].long()].long()]
        rows = torch.arange(len(some_tokens), device=hidden.device)
        picked = logits[rows, trie.token_slots[some_tokens.where(is_child, int(trie.edge_tokens[0]))].long()]
        maxima, log_sums = _ragged_statistics(of_children, row_of_child, len(some_tokens))
        pieces.append(((picked - maxima) - log_sums).masked_fill(~is_child, -math.inf))
    return torch.cat(pieces)


def _shared_row_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    counts: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """log p of several tokens a row, fp32 or fp64 [tokens]: row i of hidden [rows, H] has the next counts[i]."""
    weight, wide_bias, at_once = _widened(lm_head_weight, bias)
    piece_counts = counts.split(at_once)
    piece_tokens = token_ids.split([int(some_counts.sum()) for some_counts in piece_counts])
    pieces = [weight.new_zeros(0)]
    for some_hidden, some_counts, some_tokens in zip(hidden.split(at_once), piece_counts, piece_tokens, strict=True):
        rows = torch.arange(len(some_counts), device=hidden.device).repeat_interleave(some_counts)
        arguments = (some_hidden, weight, wide_bias, some_tokens, rows, temperature)
        if len(hidden) <= at_once:
            pieces.append(_shared_piece_log_probs(*arguments))
        else:
            pieces.append(_recomputed(_shared_piece_log_probs, *arguments))
    return torch.cat(pieces)


def _shared_piece_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    rows: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    logits = _logits(hidden.to(lm_head_weight.dtype), lm_head_weight, bias, temperature)  # [rows, V]
    return logits.log_softmax(-1)[rows, token_ids]


def _row_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """log p(token_ids[i] | hidden[i]), fp32 or fp64 [rows], differentiable. hidden [rows, H], token_ids [rows]."""
    weight, wide_bias, at_once = _widened(lm_head_weight, bias)
    if len(hidden) <= at_once:
        return _piece_log_probs(hidden, weight, wide_bias, token_ids, temperature)
    pieces = [
        _recomputed(_piece_log_probs, some_hidden, weight, wide_bias, some_tokens, temperature)
        for some_hidden, some_tokens in zip(hidden.split(at_once), token_ids.split(at_once), strict=True)
    ]
    return torch.cat(pieces)


def child_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    counts: torch.Tensor,
    temperature: float,
    normalizer: Normalizer,
) -> torch.Tensor:
    """log p(token | hidden state) of ragged children: row i of hidden [rows, H] has the next counts[i] of tokens.

    Returns fp32 or fp64 [tokens]. The softmax runs over the vocabulary, with normalizer "trie" over the row's children.
    """
    if normalizer == "trie":
        # Only logits of tokens that are somebody's child are wanted.
        used = torch.zeros(len(lm_head_weight), dtype=torch.bool, device=tokens.device)
        used[tokens] = True
        lm_head_weight = lm_head_weight[used]
        bias = None if bias is None else bias[used]
        tokens = (used.cumsum(0) - 1)[tokens]
    weight, wide_bias, at_once = _widened(lm_head_weight, bias)
    piece_counts = counts.split(at_once)
    piece_tokens = tokens.split([int(some_counts.sum()) for some_counts in piece_counts])
    log_probs = []
    for some_hidden, some_counts, some_tokens in zip(hidden.split(at_once), piece_counts, piece_tokens, strict=True):
        # Transposed, [V, some rows]: a tall weight times few columns is the faster product on a CPU, by a quarter.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = weight @ some_hidden.to(weight.dtype).T
        if wide_bias is not None:
            logits += wide_bias[:, None]
        if temperature != 1.0:
            logits /= temperature
        rows = torch.arange(len(some_counts), device=hidden.device).repeat_interleave(some_counts)
        picked = logits[some_tokens, rows]  # [some tokens]
        if normalizer == "vocab":
            maxima, log_sums = _statistics_in_place(logits)  # [some rows] both
        else:
            maxima, log_sums = _ragged_statistics(picked, rows, len(some_counts))
        log_probs.append((picked - maxima[rows]) - log_sums[rows])
    return torch.cat(log_probs)


def shared_child_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    temperature: float,
    normalizer: Normalizer,
) -> torch.Tensor:
    """`child_log_probs` where all rows of hidden [rows, H] have the same children [C]: fp32 or fp64 [rows, C]."""
    if normalizer == "trie":
        lm_head_weight = lm_head_weight.index_select(0, tokens)
        bias = None if bias is None else bias.index_select(0, tokens)
    weight, wide_bias, at_once = _widened(lm_head_weight, bias)
    log_probs = []
    for some_hidden in hidden.split(at_once):
        logits = _logits(some_hidden.to(weight.dtype), weight, wide_bias, temperature)  # [some rows, V]
        # Not logits - logsumexp: log_softmax subtracts the maximum and the log sum one after the other (see below).
        of_row = logits.log_softmax(1)
        log_probs.append(of_row if normalizer == "trie" else of_row.index_select(1, tokens))
    return torch.cat(log_probs)


def _recomputed(piece_log_probs: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """The backward pass computes the logits of each piece again, so that those of one piece are alive at a time."""
    log_probs: torch.Tensor = checkpoint(piece_log_probs, *arguments, use_reentrant=False, preserve_rng_state=False)
    return log_probs


def _widened(lm_head_weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """The head in the dtype that its products are added up in, and the rows whose logits make one piece."""
    dtype = accumulation_dtype(lm_head_weight)
    wide_bias = None if bias is None else bias.to(dtype)
    return lm_head_weight.to(dtype), wide_bias, max(1, MAX_LOGITS // max(1, len(lm_head_weight)))


def _piece_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    logits = _logits(hidden.to(lm_head_weight.dtype), lm_head_weight, bias, temperature)  # [rows, V]
    return -F.cross_entropy(logits, token_ids, reduction="none")


def _logits(
    hidden: torch.Tensor, lm_head_weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):  # an autocast region would accumulate in its low precision
        logits = F.linear(hidden, lm_head_weight, bias)
    return logits if temperature == 1.0 else logits / temperature


# Of a softmax the maximum and log sum exp(z - maximum). One after the other they are subtracted from a logit: their sum
# is as large as the logits, and its last place may be more than all of a confident token's log p.
def _statistics_in_place(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows] both, of the columns of logits [V, rows], which are overwritten: no second tensor of that size."""
    maxima = logits.amax(dim=0)
    safe = maxima.masked_fill(maxima.isinf(), 0.0)
    return safe, logits.sub_(safe).exp_().sum(dim=0).log()


def _ragged_statistics(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[num_rows] both, of the values of each row."""
    maxima = values.new_full((num_rows,), -math.inf).scatter_reduce(0, rows, values.detach(), "amax")
    return maxima, torch.zeros_like(maxima).index_add(0, rows, (values - maxima[rows]).exp()).log()
