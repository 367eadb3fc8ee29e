"""Sequences of tokens put together from pieces, and padded to a batch: prompts, and what is trained on.

A piece is an item, or what stands around items. Nothing is looked up token by token: a batch is a list of pieces, and
its tokens are theirs one after another. Knows nothing of titles, ids or tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch

from ..data.ragged import Ragged, count_within

IGNORED = -100  # the label of a token without a loss
PADDING = -1  # fills a table of tokens behind a row's last one


def padded_table(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows padded with -1, int64 [rows, longest], and their lengths."""
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), lengths.max()), PADDING, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = list(chain.from_iterable(rows))
    return torch.from_numpy(table), torch.from_numpy(lengths)


def rows_of(table: torch.Tensor) -> Ragged:
    """The rows of such a table without their padding."""
    values = table.cpu().numpy()
    real = values != PADDING
    stops = real.sum(axis=1, dtype=np.int64).cumsum()
    return Ragged(values[real], np.concatenate(([0], stops[:-1])), stops)


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encodes sequences of dense item indexes. int64 tokens throughout."""

    histories: Ragged
    """The tokens of each item within a history."""
    completions: Ragged
    """The tokens of each item where it completes a prompt; none where windows have more targets than one."""
    surroundings: Ragged
    """What stands before the first item, between two, behind the last, and all of the prompt of an empty history."""
    pad_token: int

    @cached_property
    def _pieces(self) -> Ragged:
        """All pieces: the items of histories, the completions, the surroundings, and one of no tokens."""
        parts = (self.histories, self.completions, self.surroundings, Ragged.of([np.zeros(0, dtype=np.int64)]))
        values = np.concatenate([part.flat() for part in parts])
        stops = np.cumsum(np.concatenate([part.lengths for part in parts]), dtype=np.int64)
        return Ragged(values, np.concatenate(([0], stops[:-1])), stops)

    def prompts(self, histories: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask, int64 [B, P], left-padded."""
        items, counts = self._items("histories", histories)
        rows, sizes, _ = self._rows(items, counts)
        tokens, sequence, position, _ = self._laid_out(rows, sizes)
        lengths = np.bincount(sequence)
        return self._padded(tokens, sequence, position + (lengths.max() - lengths)[sequence])

    def windows(
        self, windows: Sequence[np.ndarray], first_targets: Sequence[int] | np.ndarray, *, one_target: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask and labels, int64 [B, S], right-padded; labels are not shifted.

        Labels are input_ids at the tokens of targets: of all items from a window's first target on, or, with
        `one_target`, of its last item, which completes the prompt that the others make. Elsewhere they are -100.
        """
        if len(first_targets) != len(windows):
            raise ValueError(f"first_targets: expected one a window, {len(windows)}, got {len(first_targets)}")
        first = np.asarray(first_targets, dtype=np.int64)  # [B]
        if (first < 0).any():
            raise ValueError(f"first_targets: expected indexes into the windows, 0 or more, got {first.min()}")
        items, counts = self._items("windows", windows)
        if one_target:
            if (first != counts - 1).any():
                raise ValueError(
                    "first_targets: expected the last item of each window as its only target, as text stands around "
                    "the items (see data.target_windows), got others"
                )
            is_last = np.zeros(len(items), dtype=bool)
            is_last[np.cumsum(counts) - 1] = True
            rows, sizes, place = self._rows(items[~is_last], counts - 1, completions=items[is_last])
            is_target = place == np.repeat(sizes, sizes) - 1
        else:
            rows, sizes, place = self._rows(items, counts)
            is_target = place - 1 >= np.repeat(first, sizes)  # item 0 stands in place 1
        tokens, sequence, position, row = self._laid_out(rows, sizes)
        input_ids, attention_mask = self._padded(tokens, sequence, position)
        labels = torch.full_like(input_ids, IGNORED)
        wanted = is_target[row]
        labels[torch.from_numpy(sequence[wanted]), torch.from_numpy(position[wanted])] = torch.from_numpy(
            tokens[wanted]
        )
        return input_ids, attention_mask, labels

    def label_weights(
        self, windows: Ragged, first_targets: Sequence[int] | np.ndarray, labels: torch.Tensor, *, one_target: bool
    ) -> torch.Tensor | None:
        """float32 [B, S]: at the labels that `windows` gave, the weight of the item, elsewhere 0; None without any."""
        weights = windows.of_weights()
        if weights is None:
            return None
        is_target = count_within(windows.lengths) >= np.repeat(np.asarray(first_targets), windows.lengths)
        pieces = self.completions if one_target else self.histories
        counts = pieces.lengths[windows.flat()[is_target]]  # tokens of each target; labels stand in their order
        found = torch.zeros(labels.shape)
        found[labels != IGNORED] = torch.from_numpy(np.repeat(weights.flat()[is_target], counts))
        return found

    def _items(self, argument: str, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The items of all sequences one after another, and how many each has; checked."""
        if len(sequences) == 0:
            raise ValueError(f"{argument}: expected at least one, got none")
        ragged = Ragged.of(sequences)
        items, known = ragged.flat().astype(np.int64, copy=False), len(self.histories)
        if len(items) and not (items.min() >= 0 and items.max() < known):
            raise ValueError(
                f"{argument}: expected dense item indexes 0..{known - 1}, got {items.min()}..{items.max()}"
            )
        return items, ragged.lengths.astype(np.int64, copy=False)

    def _rows(
        self, items: np.ndarray, counts: np.ndarray, completions: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of all sequences one after another, how many each has, and the place of each in its sequence.

        Without separators item i of a sequence stands in place i + 1; a completion stands in the last one.
        """
        num_items = len(self.histories)
        first = num_items + len(self.completions)  # of the surroundings
        prefix, separator, suffix, empty, nothing = range(first, first + 5)
        stride = 2 if self.surroundings.lengths[1] else 1
        inner = np.maximum(stride * counts - (stride - 1), 0)  # [B], items and separators
        sizes = inner + (2 if completions is None else 3)
        starts = np.cumsum(sizes) - sizes
        rows = np.full(sizes.sum(), separator)
        rows[starts] = np.where(counts > 0, prefix, empty)
        rows[starts + 1 + inner] = np.where(counts > 0, suffix, nothing)
        rows[np.repeat(starts + 1, counts) + stride * count_within(counts)] = items
        if completions is not None:
            rows[starts + 2 + inner] = num_items + completions
        return rows, sizes, count_within(sizes)

    def _laid_out(self, rows: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The tokens of all sequences one after another, each int64 [tokens]: the token, which sequence it belongs to,
        where it stands in that, and which of the rows it comes from."""
        found = self._pieces.take(rows)
        row = np.repeat(np.arange(len(rows)), found.lengths)
        sequence = np.repeat(np.arange(len(sizes)), sizes)[row]
        return found.flat(), sequence, count_within(np.bincount(sequence)), row

    def _padded(self, tokens: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (int(rows.max()) + 1, int(columns.max()) + 1)
        input_ids = np.full(shape, self.pad_token, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        input_ids[rows, columns] = tokens
        attention_mask[rows, columns] = 1
        return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
