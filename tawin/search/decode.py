"""The decode of a constrained beam search, after the prefill: steps on tree attention and their bookkeeping.

Finished hypotheses are kept the way transformers' `generate(num_beams=W)` keeps them. Knows nothing of how prompts
are given, and nothing of rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tawin_kernels import BeamStep, ItemTrie, beam_step
from tawin_kernels.types import Normalizer
from torch import Tensor

from ..model.attention.decode import DecodeAttention
from ..model.backbone import Backbone
from ..model.tree_attention import BeamTree, Prompt
from .chains import Chains, has_chains
from .exclusion import Excluded


@dataclass(frozen=True)
class Sequences:
    """Token sequences of the catalogue for each prompt, best first where they come from a beam search."""

    nodes: Tensor  # int64 [B, W], the leaf of each sequence in the trie, -1 = missing
    token_ids: Tensor  # int64 [B, W, L], -100 = padding
    scores: Tensor  # fp32 [B, W], -inf = missing


@dataclass(frozen=True)
class BeamOptions:
    """What a beam search is told, prompts and model aside. Two are equal if all is, the trie by identity."""

    trie: ItemTrie
    beam_width: int
    normalizer: Normalizer = "vocab"
    length_penalty: float = 0.0
    attention: DecodeAttention | None = None
    """How the decode steps attend; None: by the rule of `decode_attention`."""

    @property
    def appended_keys(self) -> int:
        """Keys that a whole search appends to each prompt: the tokens of the last step are never run."""
        return self.beam_width * (self.trie.max_depth - 1)


def decode(
    model: Backbone,
    prompt: Prompt,
    options: BeamOptions,
    *,
    stops_early: bool = True,
    in_chains: bool | None = None,
    excluded: Excluded | None = None,
) -> Sequences:
    """All steps of the search.

    stops_early: leave out the steps after which no prompt's result can change. To know that, the host waits for the
    device; the result is the same without it.
    in_chains: run forced tokens in blocks, or not at all (`chains`); None: by the rule of `has_chains`. For that,
    too, the host waits for the device; the result is the same without it, to rounding.
    excluded: what each prompt may not get.
    """
    trie = options.trie
    search = _Search(len(prompt.lengths), trie, options.beam_width, options.length_penalty)
    if in_chains is None:
        in_chains = options.attention is None and has_chains(trie, options.normalizer)
    if in_chains:
        beams: Chains | _Steps = Chains(model, prompt, trie, options.normalizer)
    else:
        beams = _Steps(model, prompt, options)
    for depth in range(1, trie.max_depth + 1):
        wanted = search.candidates(depth)
        looked_at = wanted if excluded is None else excluded.candidates(depth, wanted)
        step = beams.step(depth - 1, search.nodes, search.scores, looked_at)
        if excluded is not None:
            step = excluded.keep(step, wanted)
        parents = search.advance(depth, step.tokens, step.nodes, step.scores, step.parents)
        if depth == trie.max_depth or (search.close_finished(depth) and stops_early and not search.is_open()):
            break
        beams.follow(depth, search.nodes, search.tokens, parents)
    return search.result()


class _Steps:
    """The beams of a search that runs a token of each beam at each step, dead ones included: no shape depends on what
    is found, as CUDA graphs need it."""

    def __init__(self, model: Backbone, prompt: Prompt, options: BeamOptions) -> None:
        self._options = options
        self._tree = BeamTree(model, prompt, attention=options.attention)
        self._weight, self._bias = model.head_in(prompt.last_hidden.dtype)
        self._hidden = prompt.last_hidden[:, None]  # [B, W, H]

    def step(self, depth: int, nodes: Tensor, scores: Tensor, candidates: int) -> BeamStep:
        return beam_step(
            self._hidden,
            self._weight,
            self._options.trie,
            nodes,
            scores,
            candidates,
            normalizer=self._options.normalizer,
            bias=self._bias,
            depth=depth,
        )

    def follow(self, depth: int, nodes: Tensor, tokens: Tensor, parents: Tensor) -> None:
        self._hidden = self._tree.append(tokens[..., depth - 1].clamp_min(0), parents)


class _Search:
    """The bookkeeping of one beam search: running beams, finished hypotheses, who may still win."""

    def __init__(self, batch: int, trie: ItemTrie, beam_width: int, penalty: float) -> None:
        self._trie = trie
        self._width = beam_width
        self._penalty = penalty
        self._finishing_depths = trie.leaf_depths
        root = torch.zeros(batch, 1, dtype=torch.int64, device=trie.device)
        self.nodes = root  # int64 [B, running], -1 = dead
        self.scores = torch.zeros(batch, 1, dtype=torch.float32, device=trie.device)  # [B, running], summed log p
        self.tokens = root.new_full((batch, 1, trie.max_depth), -100)  # [B, running, L], -100 = not yet written
        self._done_nodes = root.new_full((batch, beam_width), -1)
        self._done_scores = self.scores.new_full((batch, beam_width), -torch.inf)
        self._done_tokens = root.new_full((batch, beam_width, trie.max_depth), -100)
        self._open = torch.ones(batch, 1, dtype=torch.bool, device=trie.device)  # may a running beam still win?

    def candidates(self, depth: int) -> int:
        """Candidates to look at: W, or 2 W where some of them finish and others go on."""
        mixed = depth in self._finishing_depths and depth < self._trie.max_depth
        return 2 * self._width if mixed else self._width

    def advance(self, depth: int, tokens: Tensor, nodes: Tensor, scores: Tensor, parents: Tensor) -> Tensor:
        """Take the candidates of one step, all [B, C], best first.

        Returns the parents of those that run on, int64 [B, W].
        """
        history = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[2]))
        history[..., depth - 1] = tokens.masked_fill(nodes < 0, -100)  # [B, C, L]
        if depth in self._finishing_depths:
            leaf = self._trie.is_leaf(nodes)  # bool [B, C], False where missing
            rank = torch.arange(nodes.shape[1], device=nodes.device)
            finishing = leaf & (rank < self._width) & self._open
            self._keep_finished(nodes, scores / depth**self._penalty, history, finishing)
            scores = scores.masked_fill(leaf, -torch.inf)
            nodes = nodes.masked_fill(leaf, -1)
            # Stable: the ones that finished go to the end, the others keep their order.
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self._width]
            nodes, scores, parents = nodes.gather(1, order), scores.gather(1, order), parents.gather(1, order)
            history = history.gather(1, order[..., None].expand(-1, -1, history.shape[2]))
        self.nodes, self.scores, self.tokens = nodes, scores, history
        return parents

    def _keep_finished(self, nodes: Tensor, scores: Tensor, tokens: Tensor, finishing: Tensor) -> None:
        scores = torch.cat((self._done_scores, scores.masked_fill(~finishing, -torch.inf)), dim=1)
        nodes = torch.cat((self._done_nodes, nodes.masked_fill(~finishing, -1)), dim=1)
        tokens = torch.cat((self._done_tokens, tokens), dim=1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self._width]
        self._done_scores, self._done_nodes = scores.gather(1, order), nodes.gather(1, order)
        self._done_tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))

    def close_finished(self, depth: int) -> bool:
        """Close the prompts whose best W no running beam can enter any more (transformers' early_stopping=False).

        False where none can be closed yet.
        """
        if depth < self._finishing_depths[0]:
            return False
        best = self.scores[:, :1] / depth**self._penalty
        self._open &= best > self._done_scores[:, -1:]  # -inf while fewer than W have finished
        # Nothing that comes of the others counts any more: they are not run.
        self.nodes = self.nodes.masked_fill(~self._open, -1)
        self.scores = self.scores.masked_fill(~self._open, -torch.inf)
        return True

    def is_open(self) -> bool:
        """Whether any prompt is open. Waits for the device."""
        return bool(self._open.any())

    def result(self) -> Sequences:
        missing = self._done_nodes < 0
        tokens = self._done_tokens.masked_fill(missing[..., None], -100)
        return Sequences(self._done_nodes, tokens, self._done_scores)
