"""Pieces put together: every sequence is what one would write down piece by piece."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tawin.catalog.encoding import IGNORED, Encoder
from tawin.data.ragged import Ragged

ITEMS = [[10], [11, 12], [13, 14, 15]]
COMPLETIONS = [[20, 2], [21, 22, 2], [2]]
PREFIX, SUFFIX, EMPTY = [1, 5], [6, 7], [1, 8]


def encoder(separator: list[int], suffix: list[int]) -> Encoder:
    def ragged(rows: list[list[int]]) -> Ragged:
        return Ragged.of([np.array(row, dtype=np.int64) for row in rows])

    return Encoder(ragged(ITEMS), ragged(COMPLETIONS), ragged([PREFIX, separator, suffix, EMPTY]), pad_token=0)


def prompt(history: list[int], separator: list[int], suffix: list[int]) -> list[int]:
    if not history:
        return EMPTY
    tokens = [*PREFIX, *ITEMS[history[0]]]
    for item in history[1:]:
        tokens += [*separator, *ITEMS[item]]
    return [*tokens, *suffix]


def real(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=4)
SEPARATORS, SUFFIXES = st.sampled_from([[], [9], [9, 3]]), st.sampled_from([[], SUFFIX])


@given(histories=SEQUENCES, separator=SEPARATORS, suffix=SUFFIXES)
def test_prompts_are_their_pieces_left_padded(
    histories: list[list[int]], separator: list[int], suffix: list[int]
) -> None:
    arrays = [np.array(history, dtype=np.int64) for history in histories]
    input_ids, attention_mask = encoder(separator, suffix).prompts(arrays)
    assert real(input_ids, attention_mask) == [prompt(history, separator, suffix) for history in histories]
    assert input_ids.dtype == attention_mask.dtype == torch.int64
    assert bool((attention_mask.diff(dim=1) >= 0).all()) and bool((input_ids[attention_mask == 0] == 0).all())


@given(histories=SEQUENCES, separator=SEPARATORS, suffix=SUFFIXES, target=st.integers(0, 2))
def test_a_window_with_one_target_is_the_others_prompt_and_its_completion(
    histories: list[list[int]], separator: list[int], suffix: list[int], target: int
) -> None:
    windows = [np.array([*history, target], dtype=np.int64) for history in histories]
    input_ids, attention_mask, labels = encoder(separator, suffix).windows(
        windows, [len(history) for history in histories], one_target=True
    )
    for row, history in enumerate(histories):
        before = prompt(history, separator, suffix)
        tokens = before + COMPLETIONS[target]
        assert real(input_ids, attention_mask)[row] == tokens == input_ids[row, : len(tokens)].tolist()
        expected = [-100] * len(before) + COMPLETIONS[target]
        assert labels[row].tolist() == expected + [-100] * (labels.shape[1] - len(expected))


@pytest.mark.parametrize("one_target", [False, True])
def test_every_label_has_the_weight_of_its_item(one_target: bool) -> None:
    windows = Ragged.of([np.array([2, 0, 1]), np.array([1, 2])])
    windows = replace(windows, weights=np.array([1, 2, 3, 4, 5], dtype=np.float32))
    encode, first = encoder([9] if one_target else [], SUFFIX if one_target else []), [2, 1]
    _, _, labels = encode.windows(windows, first, one_target=one_target)
    found = encode.label_weights(windows, first, labels, one_target=one_target)
    assert found is not None and found.shape == labels.shape and (found[labels == IGNORED] == 0).all()
    pieces = COMPLETIONS if one_target else ITEMS
    assert found[0][labels[0] != IGNORED].tolist() == [3.0] * len(pieces[1])
    assert found[1][labels[1] != IGNORED].tolist() == [5.0] * len(pieces[2])
    assert encode.label_weights(replace(windows, weights=None), first, labels, one_target=one_target) is None
