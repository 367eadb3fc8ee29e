"""A decode that runs chains of forced tokens in one block, and leaves out those that no choice waits for.

A node with one child decides nothing: the token behind it is forced. Nine tenths of a title's tokens are. With
normaliser "trie" a forced token has log p 0: it is run only as part of a chain to a choice below, and only when some
beam has come to a choice without its state. With "vocab" it has a log p: the chain behind a choice is run and scored in
one forward, as soon as a beam is on it. Samples gain by that; a search, which prunes, does not (`has_chains`).

Beams still move a token at a time, so scores, their order and what is pruned are those of a decode that runs every
step. Called by `decode` and `completions.sample_sequences`.
"""

from __future__ import annotations

import torch
from tawin_kernels import BeamStep, ItemTrie, beam_step, linear_log_probs
from tawin_kernels.types import Normalizer
from torch import Tensor
from torch.nn.functional import pad

from ..model.backbone import Backbone
from ..model.tree_attention import ChainTree, Prompt


def has_chains(trie: ItemTrie, normalizer: Normalizer) -> bool:
    """Whether a search is faster in chains: over the trie where it has some.

    Over the vocabulary beams are pruned within chains that have been run to their ends: on industrial titles more
    tokens were run than step by step (docs/LOG.md).
    """
    return normalizer == "trie" and trie.longest_chain >= 1


class Chains:
    """Where the beams of a search stand in the model: the states of those at a choice, the log p of forced tokens."""

    def __init__(self, model: Backbone, prompt: Prompt, trie: ItemTrie, normalizer: Normalizer) -> None:
        self._model = model
        self._trie = trie
        self._normalizer = normalizer
        self._tree = ChainTree(model, prompt)
        self._weight, self._bias = model.head_in(prompt.last_hidden.dtype)
        batch = len(prompt.lengths)
        self.hidden = prompt.last_hidden[:, None]  # [B, W, H], the state that predicts what follows a beam at a choice
        self._ran = torch.zeros(batch, 1, dtype=torch.int64, device=trie.device)  # [B, W], tokens of each beam run
        dtype = torch.float64 if prompt.last_hidden.dtype == torch.float64 else torch.float32
        # [B, W, L], log p of forced tokens
        self._forced = torch.zeros(batch, 1, trie.max_depth, dtype=dtype, device=trie.device)

    def chooses(self, depth: int, nodes: Tensor) -> Tensor:
        """bool [B, W]: beams with `depth` tokens whose next one needs a state. At the root all have one."""
        return (nodes >= 0) if depth == 0 else (nodes >= 0) & self._trie.has_choice(nodes.clamp_min(0))

    def forced_log_probs(self, depth: int) -> Tensor:
        """Log p of the token that follows `depth` tokens, where it is forced: fp32 [B, W]."""
        return self._forced[:, :, depth]

    def step(self, depth: int, nodes: Tensor, scores: Tensor, candidates: int) -> BeamStep:
        """`beam_step` of beams with `depth` tokens at inner nodes int64 [B, W], -1 = dead. scores fp32 [B, W]."""
        chooses = self.chooses(depth, nodes)
        forced = (nodes >= 0) & ~chooses
        found = []
        if bool(chooses.any()):
            of_choices = beam_step(
                self.hidden,
                self._weight,
                self._trie,
                nodes.masked_fill(~chooses, -1),
                scores,
                candidates,
                normalizer=self._normalizer,
                bias=self._bias,
                depth=depth,
            )
            if not bool(forced.any()):
                return of_choices
            found.append(of_choices)
        found.append(self._forced_step(nodes, scores + self.forced_log_probs(depth), forced))
        return _best(found, candidates)

    def follow(self, depth: int, nodes: Tensor, tokens: Tensor, parents: Tensor) -> None:
        """Go on with the beams that a step has chosen, and run what has to be run before the next one.

        depth: tokens that the beams have. nodes, parents: int64 [B, W], -1 = dead. tokens: int64 [B, W, L].
        """
        self._select(parents)
        trie = self._trie
        known = nodes.clamp_min(0)
        ends = trie.chain_ends[known]
        ends_in_choice = trie.has_choice(ends)
        waits = (nodes >= 0) & (self._ran < depth)
        if self._normalizer == "trie":
            waits &= ends_in_choice
            is_due = waits & (ends == nodes)
        else:
            waits &= ~trie.is_leaf(nodes)
            is_due = waits
        if not bool(is_due.any()):
            return
        # A leaf's token is not run: nothing follows it.
        last = trie.depth_of(ends)  # int64 [B, W], the depth of the last token of each chain
        counts = (last - (~ends_in_choice).long() - self._ran).masked_fill(~waits, 0)
        self._run(self._with_chains(depth, known, ends, tokens, waits), counts, last)

    def _forced_step(self, nodes: Tensor, scores: Tensor, forced: Tensor) -> BeamStep:
        """The one candidate of each forced beam, in the order of beams: [B, W]."""
        edges = self._trie.child_offsets[nodes.clamp_min(0)].long()
        missing = ~forced | ~(scores > -torch.inf)  # NaN too
        edges = edges.masked_fill(missing, 0)
        parents = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
        return BeamStep(
            scores=scores.masked_fill(missing, -torch.inf),
            tokens=self._trie.edge_tokens[edges].long().masked_fill(missing, -1),
            nodes=(edges + 1).masked_fill(missing, -1),
            parents=parents.masked_fill(missing, 0),
        )

    def _select(self, parents: Tensor) -> None:
        def chosen(of_beams: Tensor) -> Tensor:
            return of_beams.gather(1, parents[..., None].expand(-1, -1, of_beams.shape[2]))

        self._tree.select(parents)
        self.hidden, self._forced = chosen(self.hidden), chosen(self._forced)
        self._ran = self._ran.gather(1, parents)

    def _with_chains(self, depth: int, nodes: Tensor, ends: Tensor, tokens: Tensor, waits: Tensor) -> Tensor:
        """The tokens of each beam, int64 [B, W, L], and behind them those of the chain below it."""
        trie, path = self._trie, tokens.clone()
        longest = int((trie.depth_of(ends) - depth).masked_fill(~waits, 0).max())
        for place in range(depth, depth + longest):
            goes_on = nodes != ends
            edges = trie.child_offsets[nodes].long().masked_fill(~goes_on, 0)
            path[:, :, place] = torch.where(goes_on, trie.edge_tokens[edges].long(), path[:, :, place])
            nodes = torch.where(goes_on, edges + 1, nodes)
        return path

    def _run(self, path: Tensor, counts: Tensor, last: Tensor) -> None:
        """Run `counts` int64 [B, W] tokens of each beam's path int64 [B, W, L]; last [B, W]: where its chain ends."""
        order = torch.arange(int(counts.max()), device=path.device)
        depths = self._ran[..., None] + order  # [B, W, C]
        places = depths.clamp_max(path.shape[2] - 1)
        exists = order < counts[..., None]
        ends = order == counts[..., None] - 1
        is_scored = exists & (depths + 1 < last[..., None]) if self._normalizer == "vocab" else torch.zeros_like(exists)
        wanted = ends | is_scored
        states = self._tree.append(path.gather(2, places).clamp_min(0), depths, exists, wanted)  # [R, H]
        hidden = self.hidden.clone()
        hidden[counts > 0] = states[ends[wanted]].to(hidden.dtype)
        self.hidden = hidden
        if self._normalizer == "vocab":
            following = path.gather(2, (places + 1).clamp_max(path.shape[2] - 1))
            log_probs = linear_log_probs(states[is_scored[wanted]], self._weight, following[is_scored], bias=self._bias)
            batch, beam, _ = is_scored.nonzero(as_tuple=True)
            self._forced[batch, beam, depths[is_scored] + 1] = log_probs
        self._ran = self._ran + counts


def _best(found: list[BeamStep], candidates: int) -> BeamStep:
    """The best of all, [B, candidates]; ties: the lower parent, then the order within what was found."""
    scores, tokens, nodes, parents = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    order = parents.sort(dim=1, stable=True).indices
    order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    order = order[:, :candidates]
    scores, tokens, nodes, parents = (part.gather(1, order) for part in (scores, tokens, nodes, parents))
    short = (0, max(0, candidates - scores.shape[1]))
    return BeamStep(
        scores=pad(scores, short, value=-torch.inf),
        tokens=pad(tokens, short, value=-1),
        nodes=pad(nodes, short, value=-1),
        parents=pad(parents, short),
    )
