"""Exact scores and ranks of the whole catalogue, without a search: every node of the item trie is run once.

Beam search with W beams may lose an item whose first tokens are unlikely, and knows nothing of items behind the W-th.
Here every item gets its log p. A prompt is run once; then the trie's inner nodes follow in depth-first order, so many
at a time, behind the prompt's keys and values. A chunk begins with the ancestors of its first node, which are run
again: with them all ancestors of all its nodes are in it. So no more than `chunk` + depth of the trie nodes a prompt
are ever held, and what is kept is one number a node and prompt.

Ranks are zero-based. Items with equal scores stand in item order. Those that share a token sequence do so in
`beam_search` too; sequences that merely score the same, to the bit, beam search puts in the order of its beams.

Knows nothing of rewards or training. Cost: nodes x parameters, so for catalogues of some thousands of items (or a GPU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tawin_kernels import ItemTrie, linear_log_probs
from tawin_kernels.types import Normalizer
from torch import Tensor, nn
from tqdm import tqdm

from .. import metrics
from ..catalog.catalog import Catalog
from ..config import KS
from ..data.dataset import Examples
from ..data.ragged import Ragged
from ..model.backbone import Backbone, backbone
from ..model.policy import evaluating
from ..model.tree_attention import Block, Prompt, check_prompts, copied_cache, prefill, states_behind

# Nodes a forward and prompt. More are no faster on a CPU: each attends to its whole chunk.
CHUNK = 256


@torch.no_grad()
def score_catalog(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    catalog: Catalog | ItemTrie,
    *,
    normalizer: Normalizer = "vocab",
    chunk: int = CHUNK,
) -> Tensor:
    """log p of every item of the catalogue after every prompt: what `beam_search` would score it by, if it found it.

    Args:
        model: as `beam_search` takes it; it is run as it is, call `model.eval()` first where it has dropout.
        input_ids, attention_mask: int64 [B, P], left-padded prompts.
        catalog: a catalogue, or its trie, on the device of the prompts.
        normalizer: what each log p is a softmax over: the vocabulary, or the children of the node before the token.
        chunk: nodes a forward and prompt. It bounds memory, not the result.

    Returns:
        fp32 [B, items] (fp64 of a model in fp64). Items that share a sequence have one score.

    Raises:
        ValueError, TypeError: for arguments that do not fit, by name.
    """
    check_prompts(input_ids, attention_mask)
    trie = catalog.trie if isinstance(catalog, Catalog) else catalog
    if not isinstance(trie, ItemTrie):
        raise TypeError(f"catalog: expected a Catalog or an ItemTrie, got {type(trie).__name__}")
    if normalizer not in ("vocab", "trie"):
        raise ValueError(f"normalizer: expected 'vocab' or 'trie', got {normalizer!r}")
    return _score(backbone(model), input_ids, attention_mask, _walk(trie, chunk, normalizer), normalizer)


@dataclass(frozen=True, eq=False)
class ExactRanks:
    """Where each user's positives stand among all items: what the metrics of a full ranking need to know."""

    ranks: np.ndarray
    """int64 [N, M], zero-based rank of each positive among all items; -1 where the user has fewer."""
    negatives_above: np.ndarray
    """int64 [N, M], items that are no positive of the user and score as high or higher; -1 likewise."""
    num_items: int


def exact_ranks(
    model: nn.Module,
    catalog: Catalog,
    examples: Examples,
    *,
    batch_size: int = 16,
    normalizer: Normalizer = "vocab",
    chunk: int = CHUNK,
    progress: bool = False,
) -> ExactRanks:
    """The exact ranks of each user's positives among all items, those of the history included.

    Args:
        model: put into eval mode and back.
        catalog: on the device of the model.
        examples: at least one. All its targets are positives; an item that comes twice is one.
        batch_size: users a forward.
        normalizer, chunk: as in `score_catalog`.
        progress: show a progress bar.

    Returns:
        `ranks[:, 0]` is that of the first target; further ones follow in order.
    """
    positives = _distinct(examples.all_targets())
    _check_positives(positives, catalog.num_items)
    device = next(model.parameters()).device
    histories = Ragged.of(examples.histories)
    order = np.argsort(histories.lengths, kind="stable")  # of like length: little padding
    walk = _walk(catalog.trie, chunk, normalizer)
    ranks, above = np.full_like(positives, -1), np.full_like(positives, -1)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="exact ranks", disable=None if progress else True, leave=False):
        rows = order[start : start + batch_size]
        input_ids, attention_mask = catalog.encode_histories(histories.take(rows))
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # as in `evaluate`
        with evaluating(model), bf16, torch.no_grad():
            scores = _score(backbone(model), input_ids.to(device), attention_mask.to(device), walk, normalizer)
            found = _ranks_among(scores, torch.as_tensor(positives[rows], device=device))
        ranks[rows], above[rows] = (part.cpu().numpy() for part in found)
    return ExactRanks(ranks, above, catalog.num_items)


def exact_metrics(
    model: nn.Module,
    catalog: Catalog,
    examples: Examples,
    *,
    opauc_beta: float = 0.01,
    batch_size: int = 16,
    normalizer: Normalizer = "vocab",
    chunk: int = CHUNK,
    progress: bool = False,
) -> dict[str, float]:
    """Means over the users of what a ranking of the whole catalogue says, by running the model on all of its trie.

    Args:
        model, catalog, examples, batch_size, normalizer, chunk, progress: as in `exact_ranks`.
        opauc_beta: the highest false-positive rate that counts in "opauc", in (0, 1].

    Returns:
        "recall@K", "ndcg@K", "wpauc@K" for K = 1, 3, 5, 10, "auc" and "opauc"; what each is: `full_metrics`.
    """
    found = exact_ranks(
        model, catalog, examples, batch_size=batch_size, normalizer=normalizer, chunk=chunk, progress=progress
    )
    return full_metrics(found, opauc_beta=opauc_beta)


def full_metrics(found: ExactRanks, *, opauc_beta: float = 0.01) -> dict[str, float]:
    """Means over the users, each user's n+ positives against the n- other items.

    Returns:
        "recall@K": share of the positives among the first K. "ndcg@K": the ideal order has all positives first.
        "wpauc@K": WPAUC((K - n+) / n-, n+ / n-), the window of Theorem 3.4, over the users with n+ <= K <= n-, for whom
        alone it is defined; left out where there are none. K = 1, 3, 5, 10. "auc", and "opauc" with `opauc_beta`.
        In these areas an item that scores as high as a positive counts as above it, as `metrics` has it.
    """
    values: dict[str, list[float]] = {}
    for ranks, above in zip(found.ranks, found.negatives_above, strict=True):
        for name, value in _user_metrics(ranks[ranks >= 0], above[ranks >= 0], found.num_items, opauc_beta).items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(of_users)) for name, of_users in values.items()}


def _user_metrics(ranks: np.ndarray, above: np.ndarray, num_items: int, beta: float) -> dict[str, float]:
    count = len(ranks)
    others = num_items - count
    # The areas know scores by their order alone: here -1, -2, ... of the negatives, and between them the positives'.
    negatives = -np.arange(1.0, others + 1.0)
    positives = -(above + 0.5)
    found = {}
    for k in KS:
        inside = ranks[ranks < k]
        ideal = (1.0 / np.log2(np.arange(min(count, k)) + 2.0)).sum()
        found[f"recall@{k}"] = len(inside) / count
        found[f"ndcg@{k}"] = float((1.0 / np.log2(inside + 2.0)).sum() / ideal)
        if count <= k <= others:
            found[f"wpauc@{k}"] = metrics.wpauc(positives, negatives, (k - count) / others, count / others)
    found["auc"] = metrics.auc(positives, negatives)
    found["opauc"] = metrics.opauc(positives, negatives, beta)
    return found


def _distinct(targets: np.ndarray) -> np.ndarray:
    """int64 [N, M] with -1 in place of what stands further left in its row already."""
    repeats = (targets[:, :, None] == targets[:, None, :]) & np.tri(targets.shape[1], k=-1, dtype=bool)
    return np.where(repeats.any(2), -1, targets)


def _check_positives(positives: np.ndarray, items: int) -> None:
    if len(positives) == 0:
        raise ValueError("examples: expected at least one, got none")
    if positives[:, 0].min() < 0 or positives.max() >= items:
        raise ValueError(
            f"examples: expected targets 0..{items - 1} as the catalogue has, got {positives[:, 0].min()}.."
            f"{positives.max()}"
        )
    if ((positives >= 0).sum(1) == items).any():
        raise ValueError(f"examples: expected an item that is no target of its user, got all {items} as targets")


def _ranks_among(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """scores [B, items], positives int64 [B, M], -1 = none: the rank of each, and the negatives that are not below."""
    exists = positives >= 0
    known = positives.clamp_min(0)
    own = scores.gather(1, known)  # [B, M]
    items = torch.arange(scores.shape[1], device=scores.device)
    ranks, above = torch.full_like(positives, -1), torch.full_like(positives, -1)
    for column in range(positives.shape[1]):  # one at a time: [B, items] is large enough
        score = own[:, column, None]
        tied = scores == score
        rank = ((scores > score) | (tied & (items < known[:, column, None]))).sum(1)
        positives_above = ((own >= score) & exists).sum(1)
        ranks[:, column] = rank
        above[:, column] = (scores >= score).sum(1) - positives_above
    return ranks.masked_fill(~exists, -1), above.masked_fill(~exists, -1)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some nodes in depth-first order, behind all ancestors of the first one that are not the root."""

    tokens: Tensor  # int64 [S]
    depths: Tensor  # int64 [S], tokens between prompt and node
    places: Tensor  # int64 [S], where each stands among all nodes
    ends: Tensor  # int64 [S], where the nodes below it end
    wanted: Tensor  # bool [S], the nodes whose children are scored; never ancestors that an earlier chunk has run
    edges: Tensor  # int64 [E], to the children of these
    rows: Tensor  # int64 [E], which of these each begins at

    def visible(self) -> Tensor:
        """bool [S, S]: a node sees its ancestors and itself."""
        queries = self.places[:, None]
        return (self.places <= queries) & (queries < self.ends)


@dataclass(frozen=True, eq=False)
class _Walk:
    trie: ItemTrie
    parents: Tensor  # int64 [nodes - 1], the node that each edge begins at
    chunks: tuple[_Chunk, ...]


def _walk(trie: ItemTrie, chunk: int, normalizer: Normalizer) -> _Walk:
    """The inner nodes but the root, depth first, `chunk` at a time.

    With normalizer "trie" a forced token has log p 0: only nodes with a choice are scored, and only nodes
    above one are run.
    """
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"chunk: expected an int of at least 1, got {chunk!r}")
    device, offsets = trie.device, trie.child_offsets.long()
    parents = torch.arange(trie.num_nodes, device=device).repeat_interleave(offsets.diff())
    is_scored = offsets.diff() > (1 if normalizer == "trie" else 0)  # bool [nodes]
    inner = (
        is_scored[trie.chain_ends] if normalizer == "trie" else is_scored.clone()
    )  # bool [nodes], those that are run
    inner[0] = False  # the root's state is the prompt's
    levels = list(pairwise(trie.level_offsets))[1:]

    sizes = inner.long()  # inner nodes of each subtree
    for first, end in reversed(levels):
        sizes.index_add_(0, parents[first - 1 : end - 1], sizes[first:end].clone())
    before = sizes[1:].cumsum(0) - sizes[1:]  # [edges], inner nodes of the subtrees of all edges before this one
    before = before - before[offsets[parents]]  # of its own siblings
    places = torch.zeros_like(sizes)  # of each node in the depth-first order
    for first, end in levels:
        above = parents[first - 1 : end - 1]
        places[first:end] = places[above] + inner[above].long() + before[first - 1 : end - 1]

    nodes = inner.nonzero()[:, 0]
    nodes = nodes[places[nodes].argsort()]  # int64 [N], depth first
    ends = places[nodes] + sizes[nodes]  # int64 [N], where the subtree of each ends
    starts = torch.tensor(trie.level_offsets[1:-1], device=device)
    depths = torch.searchsorted(starts, nodes, right=True) - 1  # int64 [N], 0 = a child of the root
    chunks = []
    for start in range(0, len(nodes), chunk):
        own = torch.arange(start, min(start + chunk, len(nodes)), device=device)
        ancestors = (ends[:start] > start).nonzero()[:, 0]
        taken = torch.cat((ancestors, own))
        wanted = is_scored[nodes[taken]]
        wanted[: len(ancestors)] = False
        rows, edges = trie.edges_below(nodes[taken[wanted]])
        chunks.append(
            _Chunk(
                tokens=trie.edge_tokens[nodes[taken] - 1].long(),
                depths=depths[taken],
                places=taken,
                ends=ends[taken],
                wanted=wanted,
                edges=edges,
                rows=rows,
            )
        )
    return _Walk(trie, parents, tuple(chunks))


def _score(model: Backbone, input_ids: Tensor, attention_mask: Tensor, walk: _Walk, normalizer: Normalizer) -> Tensor:
    """[B, items], see `score_catalog`."""
    trie, batch = walk.trie, len(input_ids)
    prompt = prefill(model, input_ids, attention_mask)
    rows, edges = trie.edges_below(torch.zeros(1, dtype=torch.int64, device=trie.device))
    of_root = _edge_log_probs(model, prompt.last_hidden, trie, rows, edges, batch, normalizer)
    scores = of_root.new_zeros(batch, trie.num_nodes)  # of each node, first that of the edge to it
    scores[:, edges + 1] = of_root
    for chunk in walk.chunks:
        if len(chunk.edges) == 0:  # chains whose choice is in the next chunk
            continue
        states = _states_of(model, prompt, chunk)  # [B * wanted, H]
        log_probs = _edge_log_probs(model, states, trie, chunk.rows, chunk.edges, batch, normalizer)
        scores[:, chunk.edges + 1] = log_probs
    for first, end in list(pairwise(trie.level_offsets))[2:]:  # sums from the root on, as a search makes them
        scores[:, first:end] += scores[:, walk.parents[first - 1 : end - 1]]
    return scores[:, trie.leaf_of_item]


def _states_of(model: Backbone, prompt: Prompt, chunk: _Chunk) -> Tensor:
    """The states of a chunk's nodes that are wanted, behind every prompt: [B * wanted, H], prompt after prompt."""
    of_chunk = (chunk.tokens, chunk.depths, torch.ones_like(chunk.wanted), chunk.wanted, chunk.visible())
    block = Block(*(part.expand(len(prompt.lengths), *part.shape) for part in of_chunk))
    return states_behind(model, prompt, copied_cache(prompt.cache), block)


def _edge_log_probs(
    model: Backbone, states: Tensor, trie: ItemTrie, rows: Tensor, edges: Tensor, batch: int, normalizer: Normalizer
) -> Tensor:
    """log p of the edges [E] below some nodes after each prompt: [B, E]. states [B * nodes, H], rows as in `_Chunk`."""
    weight, bias = model.head_in(states.dtype)
    nodes = len(states) // batch
    all_rows = rows + nodes * torch.arange(batch, device=rows.device)[:, None]  # [B, E]
    tokens = trie.edge_tokens[edges].long().expand(batch, -1)
    log_probs = linear_log_probs(states, weight, tokens, bias=bias, rows=all_rows)
    if normalizer == "vocab":
        return log_probs
    # All children of a node are here: over them alone it is the same log p less the logarithm of their sum.
    most = log_probs.new_full((batch, nodes), -math.inf).scatter_reduce(1, rows.expand(batch, -1), log_probs, "amax")
    shares = (log_probs - most[:, rows]).exp()
    sums = torch.zeros_like(most).index_add_(1, rows, shares)
    return log_probs - (most + sums.log())[:, rows]
