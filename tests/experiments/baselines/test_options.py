"""Options that make no sense are refused by their name."""

import math

import pytest

from experiments.baselines import SequenceModelOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("hidden_size", "layers", "heads", "batch_size", "epochs", "patience", "max_history")),
        ("heads", 3),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1e-3),
        ("weight_decay", math.inf),
        ("negatives", -1),
        ("loss", "bpr"),
        ("selection", "recall@4"),
        ("selection", "wpauc@5"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*got"):
        SequenceModelOptions(**{name: value})


def test_negatives_are_refused_where_the_loss_has_no_use_for_them():
    with pytest.raises(ValueError, match=r"negatives: expected .*bce.*got 5"):
        SequenceModelOptions(loss="bce", negatives=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("negatives", 1.5),
        ("epochs", 2.0),
        ("layers", True),
        ("hidden_size", "64"),
        ("dropout", "0.1"),
        ("dropout", True),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected .*got"):
        SequenceModelOptions(**{name: value})
