"""One constrained beam step: score the children of every live beam in the item trie and keep the best.

It knows nothing of models or caches: a hidden state goes in, the chosen tokens, nodes and parents come out.
"""

from __future__ import annotations

import torch

from . import reference
from .arguments import Impl, runs_triton
from .records import BeamStep, Normalizer
from .trie import ItemTrie


def beam_step(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    trie: ItemTrie,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    beam_width: int,
    *,
    normalizer: Normalizer = "vocab",
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> BeamStep:
    """The beam_width best continuations of each prompt's beams within the trie. No gradient.

    hidden: [B, W, H] fp32, bf16, fp16 (fp64 too on the CPU), the state that predicts each beam's next token.
    lm_head_weight: [V, H], dtype of hidden. bias: [V] or None.
    trie: the catalogue, on the device of hidden, with tokens below V.
    nodes: int64 [B, W], where each beam stands; -1 is a dead beam.
    scores: fp32 [B, W] (or fp64 with fp64 hidden), natural-log scores so far; -inf is a dead beam, of which nothing
        else is read.
    beam_width: how many to return, >= 1; it may exceed W and the number of candidates.
    normalizer: "vocab": log p over the whole vocabulary; "trie": renormalised over the children of the beam's node.
    temperature: logits are divided by it, > 0.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns BeamStep of [B, beam_width] tensors, best first; ties: lower parent, then lower edge. A candidate at -inf
    or NaN is a missing one: score -inf, node -1, token -1, parent 0. A beam at a leaf has no candidates.
    Raises TypeError or ValueError naming the argument.
    """
    runs_triton("beam_step", impl, hidden)
    return reference.beam_step(
        hidden,
        lm_head_weight,
        trie,
        nodes,
        scores,
        beam_width,
        normalizer=normalizer,
        temperature=temperature,
        bias=bias,
        check_values=check_values,
    )
