"""Supervised fine-tuning: the order of its data."""

from __future__ import annotations

import numpy as np

from tawin.train.sft import epoch_batches


def test_an_epoch_holds_every_row_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 12, 1000)
    batches = list(epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = np.mean([np.ptp(lengths[rows]) for rows in batches])
    assert spread < 1.5  # random batches of eight spread over some eight lengths
    again = list(epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    other = np.concatenate(list(epoch_batches(lengths, 8, np.random.default_rng(2))))
    assert not np.array_equal(np.concatenate(batches), other)
