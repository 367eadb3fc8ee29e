"""What the figures of a report draw: means over seeds, the best achievable recall, the window's weights."""

from pathlib import Path

import numpy as np
import pytest

from tawin.config import KS, Config, GRPOConfig, TAWinConfig
from tawin.report.figures import LIGHT, draw_before_after, draw_grpo, draw_window, window_weights
from tawin.run.folder import RunFolder
from tawin.run.records import Group, Run

FOLDER = RunFolder(Path("none"))


def figures_at(recall):
    """Recall and NDCG at every K, all from one number."""
    return {f"{name}@{k}": recall * k / 10 for name in ("recall", "ndcg") for k in KS}


def test_curves_of_several_seeds_are_drawn_as_their_mean():
    def run(seed, values):
        lines = [{"stage": "grpo", "step": i, "valid": {Config().evaluation.select: v}} for i, v in enumerate(values)]
        return Run(f"run-{seed}", Config(seed=seed), lines, {}, FOLDER)

    group = Group([run(0, [0.1, 0.3]), run(1, [0.3, 0.4, 0.5])])  # one of them was stopped early
    other = Group([Run("other", Config(grpo=GRPOConfig(steps=3)), [], {}, FOLDER)])
    figure = draw_grpo([group, other], LIGHT)
    strong = [line for line in figure.axes[-1].lines if line.get_alpha() is None]
    assert len(strong) == 1
    np.testing.assert_allclose(strong[0].get_xydata(), [[0, 0.2], [1, 0.35], [2, 0.5]])


def test_before_and_after_are_drawn_with_the_best_achievable_recall_where_it_is_known():
    results = {
        "sft": {"test": figures_at(0.2)},
        "grpo": {"test": figures_at(0.3)},
        "best_achievable": {str(k): 0.06 * k for k in KS},
    }
    group = Group([Run("run", Config(), [], results, FOLDER)])
    ax = draw_before_after("recall", [group], LIGHT).axes[0]
    slopes = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 2]
    np.testing.assert_allclose(slopes, [[0.02 * k, 0.03 * k] for k in KS])
    best = [collection.get_segments()[0][:, 1] for collection in ax.collections if collection.get_segments()]
    np.testing.assert_allclose(best, [[0.06 * k] * 2 for k in KS])
    assert not draw_before_after("ndcg", [group], LIGHT).axes[0].collections  # known for recall only


def test_baselines_are_grey_lines_behind_the_model():
    results = {
        "sft": {"test": figures_at(0.2)},
        "grpo": {"test": figures_at(0.3)},
        "baselines": {"popularity": {"test": figures_at(0.1)}, "counts": {"test": figures_at(0.25)}},
    }
    figure = draw_before_after("ndcg", [Group([Run("run", Config(), [], results, FOLDER)])], LIGHT)
    lines = [c.get_segments()[0][:, 1] for c in figure.axes[0].collections if c.get_segments()]
    np.testing.assert_allclose(lines, [[share * k] * 2 for k in KS for share in (0.01, 0.025)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == ["popularity", "counts"]


@pytest.mark.parametrize("anchor", [0.0, 2.0, 4.0])
def test_the_weight_window_peaks_at_the_anchor_and_weighs_one_on_average(anchor):
    config = Config(grpo=GRPOConfig(group_size=9, tawin=TAWinConfig(anchor=anchor, window=1.0)))
    weights = window_weights(config)
    assert weights.shape == (8,)
    assert weights.argmax() == anchor
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)  # fp32 sums of eight weights
    drawn = draw_window([Group([Run("run", config, [], {}, FOLDER)])], LIGHT).axes[0].lines[0]
    np.testing.assert_array_equal(drawn.get_ydata(), weights)


def test_without_tawin_every_negative_weighs_one():
    config = Config(grpo=GRPOConfig(group_size=5, tawin=TAWinConfig(enabled=False)))
    assert window_weights(config).tolist() == [1.0] * 4
