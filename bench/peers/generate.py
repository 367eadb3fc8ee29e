"""Constrained beam search as ReRe and MiniOneRec do it: transformers' `generate` with a logits processor in Python.

`generate` repeats every prompt once a beam before it runs the prompts. At each step the processor walks the beams one
by one, turns what each has generated into a tuple, looks up the tokens that may follow, and adds a dense mask to the
scores. Nothing else is slowed down: the cache is on, attention is the model's own (sdpa), no gradient is tracked, the
LM head sees the last position only, and the table is made once, outside of what is timed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

# generate marks what does not exist by adding -1e9 to its score; no real log p comes near this.
_MISSING_SCORE = -1e8


@dataclass(frozen=True)
class PrefixTable:
    """The catalogue as dicts: the tokens that may follow a prefix, and the items that a whole sequence stands for."""

    children: dict[tuple[int, ...], list[int]]
    items: dict[tuple[int, ...], list[int]]
    longest: int
    end_token: int | None

    @classmethod
    def from_sequences(cls, token_ids: Sequence[Sequence[int]], *, end_token: int | None = None) -> PrefixTable:
        """Item i is token_ids[i]. Items of several lengths need an end_token, as `generate` stops at nothing else."""
        if end_token is None and len({len(tokens) for tokens in token_ids}) > 1:
            raise ValueError("end_token: expected a token with items of several lengths, got None")
        children: dict[tuple[int, ...], set[int]] = defaultdict(set)
        items: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for item, tokens in enumerate(token_ids):
            whole = tuple(tokens) if end_token is None else (*tokens, end_token)
            items[whole].append(item)
            for depth in range(len(whole)):
                children[whole[:depth]].add(whole[depth])
        ordered = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        return cls(ordered, dict(items), max(map(len, items)), end_token)


@dataclass(frozen=True)
class PeerBeams:
    """Items for each prompt, best first, as `tawin.BeamOutput` has them."""

    item_ids: Tensor  # int64 [B, W], -1 = missing
    scores: Tensor  # fp32 [B, W], -inf = missing


class _PerBeamConstraint(LogitsProcessor):
    def __init__(self, table: PrefixTable, prompt_length: int) -> None:
        self._children = table.children
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -math.inf)  # [B * W, V]
        for row, sequence in enumerate(input_ids):
            allowed = self._children.get(tuple(sequence[self._prompt_length :].tolist()), [])
            mask[row, allowed] = 0.0
        return scores + mask


@dataclass(frozen=True)
class PeerSequences:
    """What `generate` found for each prompt, best first."""

    token_ids: Tensor  # int64 [B, W, L], -100 = padding or missing
    scores: Tensor  # fp32 [B, W], -inf = missing


def generate_beam_search(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    table: PrefixTable,
    beam_width: int,
    *,
    length_penalty: float = 0.0,
) -> PeerBeams:
    """The `beam_width` best items of every prompt; the model has to be in eval mode.

    input_ids, attention_mask: int64 [B, P], left-padded. Sequences are expanded to their items and cut to `beam_width`,
    as in `tawin.beam_search`.
    """
    rows = []
    for found in _found(model, input_ids, attention_mask, table, beam_width, length_penalty):
        pairs = [(item, score) for tokens, score in found for item in table.items.get(tokens, [])]
        rows.append((pairs + [(-1, -math.inf)] * beam_width)[:beam_width])
    return PeerBeams(
        torch.tensor([[item for item, _ in row] for row in rows], device=input_ids.device),
        torch.tensor([[score for _, score in row] for row in rows], device=input_ids.device),
    )


def generate_sequences(
    model: Any, input_ids: Tensor, attention_mask: Tensor, table: PrefixTable, beam_width: int
) -> PeerSequences:
    """The same search for a training group: the `beam_width` best sequences themselves, L as long as the longest."""
    rows = _found(model, input_ids, attention_mask, table, beam_width, 0.0)
    length = table.longest
    padded = [
        [[*tokens, *[-100] * (length - len(tokens))] for tokens, _ in row] + [[-100] * length] * (beam_width - len(row))
        for row in rows
    ]
    scores = [[score for _, score in row] + [-math.inf] * (beam_width - len(row)) for row in rows]
    return PeerSequences(torch.tensor(padded, device=input_ids.device), torch.tensor(scores, device=input_ids.device))


@torch.inference_mode()
def _found(
    model: Any, input_ids: Tensor, attention_mask: Tensor, table: PrefixTable, beam_width: int, length_penalty: float
) -> list[list[tuple[tuple[int, ...], float]]]:
    """Of each prompt the sequences that exist, with their scores, best first."""
    prompt_length = input_ids.shape[1]
    found = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        num_beams=beam_width,
        num_return_sequences=beam_width,
        max_new_tokens=table.longest,
        do_sample=False,
        use_cache=True,
        length_penalty=length_penalty,
        eos_token_id=table.end_token,
        logits_processor=LogitsProcessorList([_PerBeamConstraint(table, prompt_length)]),
        output_scores=True,  # without it generate keeps the scores of the sequences to itself
        return_dict_in_generate=True,
    )
    sequences = [_cut(tokens, table.end_token) for tokens in found.sequences[:, prompt_length:].tolist()]  # B * W
    pairs = list(zip(sequences, found.sequences_scores.tolist(), strict=True))
    return [
        [(tokens, score) for tokens, score in pairs[first : first + beam_width] if score > _MISSING_SCORE]
        for first in range(0, len(pairs), beam_width)
    ]


def _cut(tokens: list[int], end_token: int | None) -> tuple[int, ...]:
    """The tokens up to and including the first end token; `generate` fills up what follows."""
    if end_token is None or end_token not in tokens:
        return tuple(tokens)
    return tuple(tokens[: tokens.index(end_token) + 1])
