"""TAWin: its values, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
from tawin_kernels import BeamStep, GRPOLoss, TAWin


def test_the_defaults_are_those_of_the_contract():
    assert TAWin() == TAWin(anchor=2.0, window=1.0, temperature=1.0, rank_transform="identity")


@pytest.mark.parametrize("k", [1, 3, 10])
def test_for_top_k_puts_the_anchor_on_the_kth_negative(k):
    assert TAWin.for_top_k(k) == TAWin(anchor=k - 1)
    assert TAWin.for_top_k(k, window=3.0, rank_transform="log2").window == 3.0


def test_a_tawin_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TAWin().anchor = 1.0
    assert len({TAWin(), TAWin(), TAWin(window=2)}) == 2


@pytest.mark.parametrize("field", ["anchor", "window", "temperature"])
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, -math.inf])
def test_values_that_are_negative_or_not_finite_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"TAWin\.{field}: expected a finite number .*got {value}"):
        TAWin(**{field: value})


def test_zero_is_an_anchor_but_no_window_and_no_temperature():
    assert TAWin(anchor=0).anchor == 0
    for field in ("window", "temperature"):
        with pytest.raises(ValueError, match=rf"TAWin\.{field}: expected a finite number > 0, got 0"):
            TAWin(**{field: 0})


@pytest.mark.parametrize("field", ["anchor", "window", "temperature"])
@pytest.mark.parametrize("value", ["1", None, True, [1.0]])
def test_what_is_no_number_is_refused(field, value):
    with pytest.raises(TypeError, match=rf"TAWin\.{field}: expected a number"):
        TAWin(**{field: value})


@pytest.mark.parametrize("value", ["linear", "", None])
def test_an_unknown_rank_transform_is_refused(value):
    with pytest.raises(ValueError, match=r"TAWin\.rank_transform: expected one of 'identity', 'log2', 'fraction'"):
        TAWin(rank_transform=value)


def test_for_top_k_refuses_what_is_no_k():
    with pytest.raises(ValueError, match="k: expected an int >= 1, got 0"):
        TAWin.for_top_k(0)
    with pytest.raises(TypeError, match="k: expected an int"):
        TAWin.for_top_k(2.5)


def test_results_have_the_fields_of_the_contract():
    assert BeamStep._fields == ("scores", "tokens", "nodes", "parents")
    assert GRPOLoss._fields == ("loss", "log_probs", "advantages", "kl", "clip_fraction")
