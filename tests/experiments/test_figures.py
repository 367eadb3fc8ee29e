"""What the figures of experiments draw: the numbers on their axes."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import figures

from .made_records import record, sweep, table

USERS = 8
SWEEP = {"kind": "sweep", "option": "anchor", "metrics": ["recall@1", "recall@3"], "reference": ["SFT"]}


def hits(first, third):
    """Ranks of 8 users of whom `first` have their target at the top and `third` more at rank 2."""
    return [0] * first + [2] * third + [-1] * (USERS - first - third)


def swept(anchors=(0, 2, 4), data=("office",)):
    made = table("SFT", "beam", *sweep("anchor", *anchors, data=data), data=data, baseline="beam")
    found = {"SFT": (1, 1), "beam": (2, 2), "anchor 0": (4, 1), "anchor 2": (3, 3), "anchor 4": (1, 7)}
    records = [
        record(row.name, seed, hits(*found.get(row.name, (2, 2))), data=each)
        for each in data
        for row in made.rows
        for seed in (0, 1)
    ]
    return made, records


def curves(ax):
    return [line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 2]


def rings(ax):
    return [tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]


def test_a_sweep_draws_the_change_over_the_baseline_against_the_value_and_marks_the_best():
    made, records = swept()
    figure = figures.draw(made, records, SWEEP)
    assert figure is not None
    (ax,) = figure.axes
    first, third = curves(ax)
    np.testing.assert_allclose(first, [[0, 1.0], [2, 0.5], [4, -0.5]])
    np.testing.assert_allclose(third, [[0, 0.25], [2, 0.5], [4, 1.0]])
    assert rings(ax) == [(0, 1.0), (4, 1.0)]
    levels = [line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert levels == [-0.5, -0.5, 0.0]  # SFT by each metric, and the baseline
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "2", "4"]
    assert ax.get_xlabel() == "anchor"


def test_the_band_of_a_sweep_is_the_standard_error_over_seeds():
    made, records = swept()
    records = [each for each in records if (each.row, each.seed) != ("anchor 2", 1)]
    records.append(record("anchor 2", 1, hits(5, 3)))  # with seed 0: changes of .5 and 1.5 by recall@1
    figure = figures.draw(made, records, {**SWEEP, "metrics": ["recall@1"], "reference": []})
    assert figure is not None
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_two = band[band[:, 0] == 2.0][:, 1]
    assert (at_two.min(), at_two.max()) == pytest.approx((0.5, 1.5))


def test_each_data_set_with_records_is_a_panel():
    made, records = swept(data=("office", "industrial", "toys"))
    figure = figures.draw(made, [each for each in records if each.data != "industrial"], SWEEP)
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["office", "toys"]
    assert figures.draw(made, [], SWEEP) is None


def test_values_that_are_words_stand_side_by_side():
    made, records = swept(anchors=("identity", "log"))
    figure = figures.draw(made, records, {**SWEEP, "reference": []})
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["identity", "log"]
    np.testing.assert_allclose(figure.axes[0].get_xticks(), [0, 1])


def test_a_row_that_no_sweep_made_can_stand_among_them():
    made, records = swept()
    figure = figures.draw(made, records, {**SWEEP, "also": {"SFT": 3.0}, "reference": []})
    assert figure is not None
    np.testing.assert_allclose(curves(figure.axes[0])[0], [[0, 1.0], [2, 0.5], [3, -0.5], [4, -0.5]])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "2", "3", "4"]


def test_without_a_baseline_a_sweep_draws_the_metric_itself():
    made, records = swept()
    made = table(*made.rows)
    figure = figures.draw(made, records, {**SWEEP, "reference": []})
    assert figure is not None
    np.testing.assert_allclose(curves(figure.axes[0])[0], [[0, 0.5], [2, 0.375], [4, 0.125]])


def test_rows_are_dots_with_the_deviation_as_bars_in_the_tables_order():
    made = table("beam", "TAWin", "not run", baseline="beam")
    records = [record("beam", 0, hits(2, 0)), record("TAWin", 0, hits(2, 0)), record("TAWin", 1, hits(4, 0))]
    figure = figures.draw(made, records, {"kind": "rows", "metric": "recall@1"})
    assert figure is not None
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["beam", "TAWin"]
    dots = [container.lines[0].get_xydata()[0].tolist() for container in ax.containers]
    assert dots == [[0.25, 0], [0.375, 1]]
    (bar,) = ax.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 0], 0.375 + np.array([-1, 1]) * np.std([0.25, 0.5], ddof=1))


def test_series_are_means_over_the_seeds_that_have_got_so_far():
    made = table("beam", "TAWin")
    records = [
        record("TAWin", seed, [0], series={"reward": values, "step": [10.0 * i for i in range(len(values))]})
        for seed, values in ((0, [1.0, 2.0, 4.0]), (1, [3.0, 2.0]))
    ]
    figure = figures.draw(made, records, {"kind": "series", "series": "reward", "x": "step"})
    assert figure is not None
    np.testing.assert_allclose(curves(figure.axes[0])[0], [[0, 2.0], [10, 2.0], [20, 4.0]])
    assert figures.draw(made, records, {"kind": "series", "series": "loss"}) is None
    with pytest.raises(ValueError, match="'epoch' as of 'reward' in row 'TAWin', data 'office', seed 0, got 0 and 3"):
        figures.draw(made, records, {"kind": "series", "series": "reward", "x": "epoch"})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "pie"}, "kind: expected one of .*'pie'"),
        ({"kind": "rows"}, "rows: expected the fields .*'metric'"),
        ({"kind": "rows", "metric": "recall@1", "colour": "red"}, "got .*'colour'"),
        ({**SWEEP, "option": "window"}, r"sweeps, \['anchor'\], got 'window'"),
        ({**SWEEP, "reference": ["SFT", "TIGER"]}, "rows of table 'main', got 'TIGER'"),
        ({**SWEEP, "metrics": [f"recall@{k}" for k in range(1, 9)]}, "metrics: expected at most 6"),
    ],
)
def test_entries_that_cannot_be_drawn_are_refused_by_name(entry, message):
    made, records = swept()
    with pytest.raises(ValueError, match=message):
        figures.draw(made, records, entry)


def test_two_rows_of_one_value_are_refused():
    rows = [*sweep("anchor", 1), *(row for row in sweep("anchor", 1.5))]
    rows.append(type(rows[0])("again", "grpo", {}, ("office",), {"anchor": 1, "window": 2}))
    with pytest.raises(ValueError, match="one row a value of 'anchor'"):
        figures.draw(table(*rows), [record("again", 0, [0])], {**SWEEP, "reference": []})


def test_captions_say_what_is_drawn_unless_the_entry_does():
    made, _ = swept()
    assert figures.caption(made, SWEEP).startswith("Recall@1, Recall@3 against anchor, as change over beam: mean")
    assert figures.caption(made, {**SWEEP, "caption": "Own words."}) == "Own words."
    assert figures.caption(made, {"kind": "rows", "metric": "valid ndcg@3"}).startswith("valid NDCG@3: mean")
