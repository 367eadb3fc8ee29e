"""Completions for a batch of prompts: constrained beam search, sampling, random items.

Beam search runs on tree attention: the prompt is run once, every beam token once, and each step is one call of
`tawin_kernels.ops.beam_step`. This module knows tokens and tries, not rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tawin_kernels import ItemTrie, linear_log_probs
from tawin_kernels.types import Normalizer
from torch import Tensor, nn
from torch.nn.functional import pad

from ..model.backbone import Backbone, backbone
from ..model.token_tree import completion_states
from ..model.tree_attention import Prompt, check_prompts, prefill
from ..run.phases import phase
from .chains import Chains
from .decode import BeamOptions, Sequences, decode
from .exclusion import Excluded, excluded_of
from .graphs import replay


@dataclass(frozen=True)
class BeamOutput:
    """Items for each prompt, best first."""

    item_ids: Tensor  # int64 [B, W], row of the item in the trie's catalogue, -1 = missing
    token_ids: Tensor  # int64 [B, W, L], -100 = padding or missing
    mask: Tensor  # bool [B, W, L], the tokens that exist
    scores: Tensor  # fp32 [B, W], -inf = missing


def beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    beam_width: int,
    *,
    normalizer: Normalizer = "vocab",
    length_penalty: float = 0.0,
    cuda_graphs: bool = True,
    exclude: Sequence[np.ndarray] | None = None,
) -> BeamOutput:
    """Constrained beam search: the `beam_width` best items of the catalogue for every prompt.

    Args:
        model: any transformers causal LM (or a peft model of one) with sdpa or eager attention. It is run as it is:
            call `model.eval()` first where it has dropout.
        input_ids: int64 [B, P], left-padded prompts.
        attention_mask: [B, P], 0 = padding.
        trie: the catalogue.
        beam_width: W, items returned. It may exceed the catalogue: no more beams than it has sequences are run.
        normalizer: "vocab": scores are log p over the whole vocabulary, as in transformers' beam search; "trie":
            renormalised over the children of each node.
        length_penalty: a finished sequence of n tokens scores (sum of log p) / n ** length_penalty, as in transformers.
        cuda_graphs: on CUDA, a shape that comes back is captured as a CUDA graph and replayed (`graphs`).
        exclude: for each prompt, items of the catalogue (rows, int64) that it must not get. The search runs as if the
            trie did not have them; the scores of the others stay. Without CUDA graphs.

    Returns:
        BeamOutput. The best W sequences are expanded to their items (same score, in item order) and cut to W.

    Raises:
        ValueError, TypeError: for arguments that do not fit, by name.

    Search, stopping rule included, follows transformers' `generate(num_beams=W, num_return_sequences=W)` with the
    same constraint: at each step the best 2 W candidates are looked at, those of the best W that complete an item are
    kept as finished, the best W others go on.
    """
    excluded = None
    if exclude is not None:
        if len(exclude) != len(input_ids):
            raise ValueError(f"exclude: expected items of each of {len(input_ids)} prompts, got {len(exclude)}")
        excluded = excluded_of(trie, exclude)
    sequences = beam_sequences(
        model,
        input_ids,
        attention_mask,
        trie,
        beam_width,
        normalizer=normalizer,
        length_penalty=length_penalty,
        cuda_graphs=cuda_graphs,
        excluded=excluded,
    )
    return expand_items(sequences, trie, excluded)


@torch.no_grad()
def beam_sequences(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    beam_width: int,
    *,
    normalizer: Normalizer = "vocab",
    length_penalty: float = 0.0,
    cuda_graphs: bool = True,
    prompt: Prompt | None = None,
    excluded: Excluded | None = None,
) -> Sequences:
    """Like `beam_search`, but the distinct sequences themselves: what a training group is made of.

    prompt: what `prefill` gave for these prompts, which are not run again then.
    excluded: sequences with no other items than these are not found.
    """
    check_prompts(input_ids, attention_mask)
    if not isinstance(beam_width, int) or isinstance(beam_width, bool) or beam_width < 1:
        raise ValueError(f"beam_width: expected an int of at least 1, got {beam_width!r}")
    if not isinstance(trie, ItemTrie):
        raise TypeError(f"trie: expected an ItemTrie, got {type(trie).__name__}")
    if not isinstance(length_penalty, int | float) or not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty: expected a finite number, got {length_penalty!r}")
    parts = backbone(model)
    vocabulary = parts.vocabulary
    if input_ids.device.type == "cpu" and not bool(((input_ids >= 0) & (input_ids < vocabulary)).all()):
        raise ValueError(f"input_ids: expected tokens in [0, {vocabulary}), got {input_ids.min()}..{input_ids.max()}")
    running = min(beam_width, trie.num_sequences)
    options = BeamOptions(trie, running, normalizer, float(length_penalty))
    prompt = _prompt(parts, input_ids, attention_mask, prompt)
    with phase("decode"):
        replays = cuda_graphs and input_ids.is_cuda and excluded is None
        found = replay(parts, prompt, options) if replays else None
        found = decode(parts, prompt, options, excluded=excluded) if found is None else found
    missing = (0, beam_width - running)
    return Sequences(
        nodes=pad(found.nodes, missing, value=-1),
        token_ids=pad(found.token_ids, (0, 0, *missing), value=-100),
        scores=pad(found.scores, missing, value=-torch.inf),
    )


def _prompt(model: Backbone, input_ids: Tensor, attention_mask: Tensor, prompt: Prompt | None) -> Prompt:
    """A prefilled prompt that may be appended to."""
    if prompt is not None:
        return prompt.detached()
    with phase("prefill"):
        return prefill(model, input_ids, attention_mask)


def expand_items(sequences: Sequences, trie: ItemTrie, excluded: Excluded | None = None) -> BeamOutput:
    """The items of each sequence (same score, in item order), cut to as many items as there are sequences."""
    nodes = sequences.nodes
    width = nodes.shape[1]
    if excluded is not None:
        return _without(_expanded(sequences, trie, width + excluded.items.shape[1]), excluded, width)
    return _expanded(sequences, trie, width)


def _without(found: BeamOutput, excluded: Excluded, width: int) -> BeamOutput:
    """The first `width` items that are not excluded."""
    gone = excluded.of_items(found.item_ids)
    order = gone.sort(dim=1, stable=True).indices[:, :width]
    gone = gone.gather(1, order)
    tokens = found.token_ids.gather(1, order[..., None].expand(-1, -1, found.token_ids.shape[2]))
    tokens = tokens.masked_fill(gone[..., None], -100)
    items = found.item_ids.gather(1, order).masked_fill(gone, -1)
    return BeamOutput(items, tokens, tokens >= 0, found.scores.gather(1, order).masked_fill(gone, -torch.inf))


def _expanded(sequences: Sequences, trie: ItemTrie, width: int) -> BeamOutput:
    """The first `width` items of the sequences."""
    nodes = sequences.nodes
    present = nodes >= 0
    offsets = trie.item_offsets.long()
    start = offsets[nodes.clamp_min(0)]  # [B, W]
    count = (offsets[nodes.clamp_min(0) + 1] - start).masked_fill(~present, 0)
    end = count.cumsum(1)  # [B, W], items of the sequences up to and including this one
    slot = torch.arange(width, device=nodes.device).expand(len(nodes), -1).contiguous()
    source = torch.searchsorted(end, slot, right=True)  # the sequence that item slot comes from; W = missing
    found = source < nodes.shape[1]
    source = source.clamp_max(nodes.shape[1] - 1)
    item = start.gather(1, source) + slot - (end - count).gather(1, source)
    items = trie.item_ids[item.masked_fill(~found, 0)].long().masked_fill(~found, -1)
    tokens = sequences.token_ids.gather(1, source[..., None].expand(-1, -1, sequences.token_ids.shape[2]))
    tokens = tokens.masked_fill(~found[..., None], -100)
    scores = sequences.scores.gather(1, source).masked_fill(~found, -torch.inf)
    return BeamOutput(items, tokens, tokens >= 0, scores)


@torch.no_grad()
def sample_sequences(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    group_size: int,
    *,
    normalizer: Normalizer = "vocab",
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    prompt: Prompt | None = None,
) -> Sequences:
    """`group_size` sequences a prompt, drawn token by token from the policy restricted to the trie; repeats may occur.

    The draw is over the children of a node (softmax over them alone); scores are summed log p by the normalizer, like
    those of beam search. `uniforms` fp64 [B, G, L] are what is drawn by (`draw_uniforms`); None: drawn here. Other
    arguments as in `beam_search`.
    """
    check_prompts(input_ids, attention_mask)
    parts = backbone(model)
    prompt = _prompt(parts, input_ids, attention_mask, prompt)
    weight, bias = parts.head_in(prompt.last_hidden.dtype)
    chains = Chains(parts, prompt, trie, normalizer)
    batch = input_ids.shape[0]
    if uniforms is None:
        uniforms = draw_uniforms((batch, group_size, trie.max_depth), input_ids.device, generator)
    nodes = torch.zeros(batch, group_size, dtype=torch.int64, device=input_ids.device)
    scores = torch.zeros(batch, group_size, device=input_ids.device)
    tokens = nodes.new_full((batch, group_size, trie.max_depth), -100)
    parents = torch.zeros_like(nodes)
    for depth in range(trie.max_depth):
        running = ~trie.is_leaf(nodes)
        edges = trie.child_offsets[nodes].long().masked_fill(~running, 0)  # of the first child
        of_token = torch.zeros_like(scores) if depth == 0 else chains.forced_log_probs(depth).to(scores.dtype)
        rows = chains.hidden.shape[1]  # R = 1 at the root, where all stand, else G
        chooses = chains.chooses(depth, nodes[:, :rows].masked_fill(~running[:, :rows], -1))  # [B, R]
        if bool(chooses.any()):
            children, present = _children(trie, nodes[:, :rows][chooses])  # edges [N, C], bool
            rows_of = torch.arange(len(children), device=nodes.device)[:, None].expand_as(children)
            tokens_of = trie.edge_tokens[children].long().masked_fill(~present, -100)
            log_probs = linear_log_probs(chains.hidden[chooses], weight, tokens_of, rows=rows_of, bias=bias)  # [N, C]
            weights = log_probs.masked_fill(~present, -torch.inf).softmax(-1)
            # Sums of integers are exact in any order: on a GPU those of floats are not the same every time.
            sums = (weights.double() * 2**40).long().cumsum(-1).double()
            wanted = uniforms[..., depth].reshape(batch, rows, -1)[chooses] * sums[:, -1:]  # [N, G / R]
            passed = torch.searchsorted(sums, wanted, right=True)
            drawn = torch.minimum(passed, present.sum(-1, keepdim=True) - 1)
            if normalizer == "trie":
                log_probs = weights.log()
            whole = chooses if rows == group_size else chooses.expand(-1, group_size)
            edges[whole] = children.gather(1, drawn).flatten()
            of_token[whole] = log_probs.gather(1, drawn).flatten().to(of_token.dtype)
        tokens[..., depth] = torch.where(running, trie.edge_tokens[edges].long(), -100)
        scores = scores + of_token.masked_fill(~running, 0.0)
        nodes = torch.where(running, edges + 1, nodes)
        running = ~trie.is_leaf(nodes)
        if depth + 1 == trie.max_depth or not bool(running.any()):
            break
        chains.follow(depth + 1, nodes.masked_fill(~running, -1), tokens, parents)
        parents = torch.arange(group_size, device=nodes.device).expand(batch, -1)
    return Sequences(nodes, tokens, scores)


def _children(trie: ItemTrie, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Edges below inner nodes int64 [N], padded to the widest one: int64 [N, C] and bool [N, C] (False = padding)."""
    offsets = trie.child_offsets.long()
    start, count = offsets[nodes], offsets[nodes + 1] - offsets[nodes]
    slot = torch.arange(int(count.max()), device=nodes.device)
    present = slot < count[:, None]
    return (start[:, None] + slot).masked_fill(~present, 0), present


def random_sequences(
    trie: ItemTrie,
    item_token_ids: Tensor,
    batch: int,
    group_size: int,
    *,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Sequences:
    """`group_size` distinct sequences a prompt, uniform over the catalogue's distinct sequences.

    `item_token_ids` int64 [items, L] holds the tokens of each item, -1 = padding. Scores are -inf (not yet known).
    Where the catalogue has fewer distinct sequences than `group_size`, the rest is missing. `uniforms` fp64 [B, G] are
    what is drawn by (`draw_uniforms`); None: drawn here.
    """
    leaves = trie.leaf_of_item.unique()
    width = min(group_size, leaves.numel())
    if uniforms is None:
        uniforms = draw_uniforms((batch, group_size), leaves.device, generator)
    nodes = leaves.new_full((batch, group_size), -1)
    nodes[:, :width] = leaves[_without_replacement(uniforms[:, :width], leaves.numel())]
    first_item = trie.item_ids[trie.item_offsets[nodes.clamp_min(0)].long()].long()  # [B, G]
    tokens = item_token_ids[first_item].masked_fill((nodes < 0)[..., None], -1)
    tokens = tokens.masked_fill(tokens < 0, -100)
    return Sequences(nodes, tokens, torch.full(nodes.shape, -torch.inf, device=nodes.device))


def draw_uniforms(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Numbers in [0, 1), fp64: fine enough to draw from millions."""
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def _without_replacement(uniforms: Tensor, total: int) -> Tensor:
    """Distinct numbers below `total`, a row of them for each row of uniforms [B, n]: the first n of a Fisher-Yates
    shuffle, of which only the exchanged places are kept. int64 [B, n]."""
    batch, count = uniforms.shape
    places = torch.full((batch, count), -1, dtype=torch.int64, device=uniforms.device)
    values, drawn = torch.empty_like(places), torch.empty_like(places)

    def standing_at(place: Tensor) -> Tensor:
        """What the shuffle has put at a place [B] so far: by the last exchange there, or the place's own number."""
        met = places == place[:, None]
        last = met.long().mul(torch.arange(1, count + 1, device=place.device)).amax(1) - 1
        return torch.where(last >= 0, values.gather(1, last.clamp_min(0)[:, None])[:, 0], place)

    for index in range(count):
        place = index + (uniforms[:, index] * (total - index)).long()
        drawn[:, index] = standing_at(place)
        values[:, index] = standing_at(torch.full_like(place, index))
        places[:, index] = place
    return drawn


def scored_tokens(token_ids: Tensor, trie: ItemTrie | None, nodes: Tensor | None) -> Tensor:
    """Which tokens of completions int64 [..., L] have a log p to be computed: bool [..., L].

    With the trie as normaliser, and the `prefix_nodes` of the tokens, only those behind a choice; the log p of a forced
    token is 0. Without: all.
    """
    exists = token_ids >= 0
    if trie is None or nodes is None:
        return exists
    return exists & (nodes >= 0) & trie.has_choice(nodes.clamp_min(0))


def prefix_nodes(trie: ItemTrie, token_ids: Tensor) -> Tensor:
    """The node of the trie before each token of given completions: int64, of the shape of token_ids [..., L].

    token_ids int64, -100 = padding. 0, the root, before the first token; -1 behind a token that leaves the trie and
    behind the first padding. Does not wait for the device.
    """
    node = torch.zeros_like(token_ids[..., 0])
    nodes = []
    for tokens in token_ids.unbind(-1):
        nodes.append(node)
        node = trie.child(node, tokens)
    return torch.stack(nodes, dim=-1)


@torch.no_grad()
def sequence_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_ids: Tensor,
    *,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    prompt: Prompt | None = None,
) -> Tensor:
    """Log p of every token of given completions, without gradient.

    Args:
        token_ids: int64 [B, G, L], -100 = padding.
        normalizer: "vocab": over the whole vocabulary; "trie": over the children of the node before the token.
        trie: the catalogue; with normalizer "trie" only.
        prompt: what `prefill` gave for these prompts, which are not run again then.

    Returns:
        fp32 [B, G, L], 0 at padding.
    """
    parts = backbone(model)
    nodes = None if trie is None else prefix_nodes(trie, token_ids)
    scored = scored_tokens(token_ids, trie, nodes)
    states, rows = completion_states(parts, input_ids, attention_mask, token_ids, prompt, scored=scored)
    weight, bias = parts.head_in(states.dtype)
    tokens = token_ids.masked_fill(~scored, -100)
    return linear_log_probs(states, weight, tokens, bias=bias, rows=rows, normalizer=normalizer, trie=trie, nodes=nodes)


def score_sequences(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_ids: Tensor,
    *,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    prompt: Prompt | None = None,
) -> Tensor:
    """Their sums, fp32 [B, G]: what beam search scores a completion by."""
    return sequence_log_probs(
        model, input_ids, attention_mask, token_ids, normalizer=normalizer, trie=trie, prompt=prompt
    ).sum(-1)
