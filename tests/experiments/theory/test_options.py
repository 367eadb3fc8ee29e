"""Options of the theory's checks: what the YAML may say and what is refused."""

from __future__ import annotations

from types import ModuleType

import pytest

from experiments.theory import auc_gradient, beam_density, correlation, recall_bounds
from experiments.theory.options import read

MODULES = [auc_gradient, beam_density, recall_bounds, correlation]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_an_unknown_option_is_refused_by_name(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="'seeds'"):
        module.run({"seeds": 3}, 0)


def test_lists_become_tuples_and_whole_numbers_pass_for_floats() -> None:
    options = read(correlation.Options, {"ks": [1, 2], "beta": 1})
    assert options == correlation.Options(ks=(1, 2), beta=1.0)


@pytest.mark.parametrize("wrong", [{"users": 2.5}, {"users": True}, {"ks": 3}, {"beta": "0.1"}])
def test_a_value_of_another_type_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        read(correlation.Options, wrong)


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        (auc_gradient, {"group_size": 1}),
        (auc_gradient, {"groups": 0}),
        (beam_density, {"widths": [0, 16]}),
        (beam_density, {"shown_width": 5}),
        (beam_density, {"normalizer": "catalogue"}),
        (recall_bounds, {"negatives": 3}),
        (recall_bounds, {"ks": [0, 1]}),
        (correlation, {"beta": 0.0}),
        (correlation, {"positives": 0}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(module: ModuleType, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        module.run(wrong, 0)
