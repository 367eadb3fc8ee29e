"""What is said of a run that ends below a baseline."""

import pytest

from tawin.train.pipeline import behind_counts


@pytest.mark.parametrize(
    ("results", "is_behind"),
    [
        ({}, False),
        ({"sft": 0.1}, False),  # a run of before, without baselines
        ({"counts": 0.2, "sft": 0.1}, True),
        ({"counts": 0.2, "sft": 0.1, "grpo": 0.2}, False),
        ({"counts": 0.2, "sft": 0.3, "grpo": 0.1}, True),  # the model of the run is GRPO's
    ],
)
def test_a_run_says_so_where_its_last_model_is_below_counts_on_valid(results, is_behind):
    parts = {name: {"valid": {"recall@3": value}, "test": {"recall@3": 1.0}} for name, value in results.items()}
    if "counts" in parts:
        parts["baselines"] = {"counts": parts.pop("counts")}
    said = behind_counts(parts, "recall@3")
    assert bool(said) == is_behind
    if is_behind:
        assert "valid recall@3 0.1000, 0.2000" in said
