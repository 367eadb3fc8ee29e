"""Figures of the theory: drawn from real records, alike each time, and what is refused."""

from __future__ import annotations

from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.plan import load_table
from experiments.store import Record
from experiments.theory import auc_gradient, beam_density, correlation, recall_bounds
from experiments.theory.figures import FIGURES, draw, draw_correlation
from tawin.report.figures import DARK, LIGHT

from .small_options import AUC_GRADIENT, BEAM_DENSITY, CORRELATION, RECALL_BOUNDS

CHECKS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "auc_gradient": (auc_gradient, {**AUC_GRADIENT, "groups": 8}),
    "beam_density": (beam_density, BEAM_DENSITY),
    "recall_bounds": (recall_bounds, RECALL_BOUNDS),
    "correlation": (correlation, CORRELATION),
}


def made_record(check: str, *, row: str | None = None, seed: int = 0) -> Record:
    module, options = CHECKS[check]
    values, series = module.run(options, seed)
    return Record("theory", "synthetic", row or check, seed, options, values, series=series)


def test_there_is_a_figure_for_every_check_of_the_table() -> None:
    checks = {row.method.removeprefix("theory.") for row in load_table("theory").rows}
    assert set(FIGURES) == set(CHECKS) == checks


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_a_row_is_drawn_from_its_own_records(check: str) -> None:
    row = f"{check}: small"
    # The other record has no series: to draw from it would fail.
    figure = draw(row, [made_record(check, row=row), Record("theory", "synthetic", "another row", 0, {}, {})])
    assert all(ax.has_data() for ax in figure.axes)


def test_the_same_records_give_the_same_bytes_and_a_dark_page_others() -> None:
    records = [made_record("recall_bounds")]
    first, again, dark = (png(draw("recall_bounds", records, theme)) for theme in (LIGHT, LIGHT, DARK))
    assert first == again != dark


def png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def test_a_line_is_the_mean_over_seeds() -> None:
    records = [made_record("correlation", seed=seed) for seed in (0, 1)]
    figure = draw_correlation(records, LIGHT)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "AUC")
    expected = [sum(r.series["auc, pearson, users"][place] for r in records) / 2 for place in range(3)]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx(expected)


def test_what_cannot_be_drawn_is_refused_by_name() -> None:
    records = [made_record("correlation")]
    with pytest.raises(ValueError, match="'auc'"):
        draw("auc", records)
    with pytest.raises(ValueError, match="'recall_bounds'"):
        draw("recall_bounds", records)
