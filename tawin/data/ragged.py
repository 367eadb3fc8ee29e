"""Ragged: many sequences of unequal length, all of them in one flat array, which may be a memory-mapped file.

It stands wherever a list of arrays would. Cutting and choosing sequences makes new bounds and copies no value, and no
Python object is made for a sequence that nobody asks for. Each value may have a weight, which goes where it goes. The
module knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Ragged(Sequence[np.ndarray]):
    """Sequence i is values[starts[i] : stops[i]]; sequences may overlap, lie in any order and leave gaps.

    Indexing and iteration give views of `values`, a slice gives a Ragged. ValueError for bounds that do not fit.
    """

    values: np.ndarray
    """Any dtype, one-dimensional, in memory or memory-mapped."""
    starts: np.ndarray
    """int32 or int64 [sequences]"""
    stops: np.ndarray
    """[sequences], of the dtype of starts"""
    weights: np.ndarray | None = None
    """float32, of the shape of values; None: no value has one."""

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ValueError(f"values: expected one dimension, got shape {list(self.values.shape)}")
        if self.weights is not None and self.weights.shape != self.values.shape:
            raise ValueError(
                f"weights: expected the shape of values {list(self.values.shape)}, got {list(self.weights.shape)}"
            )
        if self.starts.dtype not in (np.int32, np.int64) or self.starts.ndim != 1:
            raise ValueError(
                f"starts: expected int32 or int64 [sequences], got {self.starts.dtype} {list(self.starts.shape)}"
            )
        if self.stops.dtype != self.starts.dtype or self.stops.shape != self.starts.shape:
            raise ValueError(
                f"stops: expected {self.starts.dtype} [{len(self.starts)}], as starts is, got {self.stops.dtype} "
                f"{list(self.stops.shape)}"
            )
        if len(self.starts) == 0:
            return
        if self.starts.min() < 0 or self.stops.max() > len(self.values) or (self.stops < self.starts).any():
            raise ValueError(
                f"starts, stops: expected 0 <= start <= stop <= {len(self.values)}, the number of values, for every "
                f"sequence, got starts from {self.starts.min()}, stops to {self.stops.max()}, "
                f"{int((self.stops < self.starts).sum())} stops before their start"
            )

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Ragged:
        """The sequences as they are if they are ragged already, else a copy of them one after another."""
        if isinstance(sequences, Ragged):
            return sequences
        values = np.concatenate(list(sequences)) if len(sequences) else np.zeros(0, dtype=np.int64)
        offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64)
        return cls(values, offsets[:-1], offsets[1:])

    def __repr__(self) -> str:
        return f"Ragged({len(self)} sequences over {len(self.values)} values, {self.values.dtype})"

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: SupportsIndex) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Ragged: ...
    def __getitem__(self, index: SupportsIndex | slice) -> np.ndarray | Ragged:
        if isinstance(index, slice):
            return self.take(index)
        return self.values[self.starts[index] : self.stops[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.values[start:stop] for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def lengths(self) -> np.ndarray:
        """[sequences], of the dtype of the bounds"""
        return self.stops - self.starts

    def bounded(self, starts: np.ndarray, stops: np.ndarray) -> Ragged:
        """Other sequences of the same values; the bounds may be integers of any dtype."""
        kind = self.starts.dtype
        return Ragged(self.values, starts.astype(kind, copy=False), stops.astype(kind, copy=False), self.weights)

    def take(self, rows: np.ndarray | slice) -> Ragged:
        """The sequences at `rows` (integers, booleans or a slice, as numpy indexes), in that order."""
        return Ragged(self.values, self.starts[rows], self.stops[rows], self.weights)

    def of_weights(self) -> Ragged | None:
        """The weights of each sequence's values in the values' place; None where they have none."""
        return None if self.weights is None else Ragged(self.weights, self.starts, self.stops)

    def drop_last(self, count: int | np.ndarray) -> Ragged:
        """Each sequence without its last `count` values (0 or more, one number or one a sequence)."""
        return self.bounded(self.starts, np.maximum(self.starts, self.stops - count))

    def last(self, count: int | np.ndarray) -> Ragged:
        """The last `count` values of each sequence (0 or more, one number or one a sequence), or all it has."""
        return self.bounded(np.maximum(self.starts, self.stops - count), self.stops)

    def at(self, place: int) -> np.ndarray:
        """The value at one place of every sequence, counted from the end where negative: [sequences], a copy.

        IndexError if a sequence is too short to have it.
        """
        short = np.flatnonzero(self.lengths < (place + 1 if place >= 0 else -place))
        if len(short):
            row = int(short[0])
            raise IndexError(f"place {place}: expected it in every sequence, but {row} has {self.lengths[row]} values")
        return self.values[(self.starts if place >= 0 else self.stops) + place]

    def flat(self) -> np.ndarray:
        """The values of all sequences one after another, a copy."""
        lengths = self.lengths
        return self.values[np.repeat(self.starts, lengths) + count_within(lengths)]


def count_within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... within each of the stretches of the given lengths: [2, 3] gives 0 1 0 1 2."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
