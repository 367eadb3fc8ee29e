"""Rows and pairs with work: what is listed, totals, targets, rows whose coefficients cancel."""

from __future__ import annotations

import math

import pytest
import torch
from tawin_kernels.ops.log_prob.pair_lists import Pairs, list_pairs

from ...devices import DEVICE

IGNORED = -100


def pairs(tokens, rows, log_probs, coefficients):
    ints = (None if x is None else torch.tensor(x, dtype=torch.int64, device=DEVICE) for x in (tokens, rows))
    floats = (torch.tensor(x, dtype=torch.float32, device=DEVICE) for x in (log_probs, coefficients))
    return Pairs(*ints, *floats)


def test_each_pair_is_its_own_row_and_those_without_work_are_in_no_list():
    lists = list_pairs(
        pairs([5, IGNORED, 5, 7, 9], None, [-1.0] * 5, [0.5, 1.0, -2.0, 0.0, 3.0]), R=5, V=10, by_token=True
    )
    assert lists.by_row.keys.tolist() == [0, 2, 4]
    assert lists.dense.tolist() == [0, 1, 2]
    assert lists.rows.totals.tolist() == [0.5, -2.0, 3.0]
    assert lists.rows.rests.tolist() == [0.0, 0.0, 0.0]
    assert lists.rows.targets.tolist() == [5, 5, 9]
    assert lists.by_token.keys.tolist() == [5, 9]
    assert lists.by_token.order[:3].tolist() == [0, 2, 4] and lists.by_token.offsets.tolist() == [0, 2, 3]


def test_pairs_of_a_row_stand_by_token_and_the_likeliest_is_the_target():
    lists = list_pairs(
        pairs(
            [5, 7, 5, 3, 8, 8, IGNORED, 1],
            [2, 2, 2, 2, 0, 0, 0, 1],
            [-0.1, -3.0, -0.1, -2.0, -1.0, -1.0, 0.0, -1.0],
            [1.0, 10.0, 2.0, 20.0, 4.0, -4.0, 9.0, 0.0],
        ),
        R=4,
        V=10,
        by_token=False,
    )
    assert lists.by_row.keys.tolist() == [0, 2]
    assert lists.by_row.order[:6].tolist() == [4, 5, 3, 0, 2, 1]
    assert lists.rows.totals.tolist() == [0.0, 33.0]
    assert lists.rows.targets.tolist() == [8, 5]
    assert lists.rows.rests.tolist() == [0.0, 30.0]
    assert lists.dense.tolist() == [1]  # 4 - 4 cancels
    assert lists.by_token is None


def test_more_pairs_of_a_row_than_are_read_at_once_count_all_the_same():
    count = 75
    log_probs = [-5.0 + 0.01 * i for i in range(count)]
    lists = list_pairs(pairs(list(range(count)), [0] * count, log_probs, [1.0] * count), R=1, V=count, by_token=False)
    assert lists.rows.totals.item() == count and lists.rows.rests.item() == count - 1
    assert lists.rows.targets.item() == count - 1


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_rows_with_coefficients_that_are_not_finite_do_not_pass_for_cancelling(broken):
    lists = list_pairs(pairs([1, 2], None, [-1.0, -1.0], [broken, 1.0]), R=2, V=3, by_token=False)
    assert lists.dense.tolist() == [0, 1]


def test_tokens_without_a_probability_have_a_target_still():
    lists = list_pairs(pairs([1, 2], [0, 0], [-math.inf] * 2, [1.0, 1.0]), R=1, V=3, by_token=False)
    assert lists.rows.targets.tolist() == [1]
