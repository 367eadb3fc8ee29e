"""The figures of the theory: one function a check, drawn from the series of its records, in the report's look.

A line is the mean over seeds, the band about it one standard deviation. Knows nothing of how a check is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from experiments.store import Record
from tawin.report.figures import LIGHT, Theme

# The same name and colour in every figure.
METRICS = {
    "auc": ("AUC", 0),
    "opauc(beta)": ("OPAUC(β), β fixed", 4),
    "opauc": ("OPAUC(K / n₋)", 1),
    "opauc(K / n-)": ("OPAUC(K / n₋)", 1),
    "best opauc": ("OPAUC, best β", 4),
    "wpauc": ("WPAUC of Theorem 3.4", 2),
}


def draw(name: str, records: Sequence[Record], theme: Theme = LIGHT) -> Figure:
    """The figure of a row, to be drawn and saved within `theme.style()`.

    Args:
        name: of the row: its check (a key of FIGURES), then a colon and what tells it apart, if the check has several
            rows: "correlation: 3 targets".
        records: a table's; those of other rows are left out.
        theme: for a light or a dark page.

    Raises:
        ValueError: a name that begins with no check, no record of that row.
    """
    check = name.partition(":")[0]
    if check not in FIGURES:
        raise ValueError(f"name: expected one of {sorted(FIGURES)}, alone or before a colon, got {name!r}")
    chosen = [record for record in records if record.row == name]
    if not chosen:
        raise ValueError(f"records: expected some of row {name!r}, got {sorted({record.row for record in records})}")
    return FIGURES[check](chosen, theme)


def draw_auc_gradient(records: Sequence[Record], theme: Theme) -> Figure:
    """Lemma 3.1: the mean gradient of more and more groups, beside the gradient of the whole catalogue's margin."""
    figure, (error, angle) = theme.figure(2, 6.8, share_x=False)
    groups = _values(records, "groups").mean(0)
    _line(error, groups, _values(records, "relative error"), theme, 0, "random negatives")
    start = _values(records, "relative error").mean(0)[0]
    error.plot(groups, start / np.sqrt(groups), color=theme.ink, linestyle="--", linewidth=1.0, label="1 / √groups")
    error.set(yscale="log", ylabel="relative error of the gradient")
    _plain(error, "y")
    for index, (series, label) in enumerate(
        [
            ("cosine", "random negatives, with the AUC margin"),
            ("sampled, policy margin", "policy's draws, with the policy-weighted margin"),
            ("sampled, AUC margin", "policy's draws, with the AUC margin"),
        ]
    ):
        _line(angle, groups, _values(records, series), theme, index, label)
    angle.set(ylabel="cosine of the gradients")
    for ax in (error, angle):
        ax.set(xscale="log", xlabel="groups drawn per prompt")
        _plain(ax, "x")
    _legend(error)
    _legend(angle, columns=1)
    return figure


def draw_beam_density(records: Sequence[Record], theme: Theme) -> Figure:
    """Lemma 3.2: how far a beam's negatives are from OPAUC's, by width, and both densities over rank at one width."""
    figure, (distance, density) = theme.figure(2, 7.2, share_x=False)
    widths = _values(records, "width").mean(0)
    for series, label, index in (
        ("distance", "beam's negatives to OPAUC's, distance", 1),
        ("margin error", "their margins, relative difference", 0),
        ("hit share", "groups with a hit, share of users", 2),
    ):
        _line(distance, widths, _values(records, series), theme, index, label)
    distance.set(xlabel="beam width W (items)", ylabel="share, 0 to 1", ylim=(-0.02, 1.02))
    distance.set_xscale("log", base=2)
    _plain(distance, "x", list(widths))
    _legend(distance, columns=1)
    ranks = _values(records, "rank").mean(0)
    for series, label, style in (
        ("beam density", "found by the beam", {"color": theme.colours[1], "linewidth": 1.8}),
        ("softmax density", "drawn from the policy", {"color": theme.colours[3], "linewidth": 1.8}),
        ("opauc density", "OPAUC", {"color": theme.ink, "linewidth": 1.2, "linestyle": "--"}),
    ):
        density.step(ranks, _values(records, series).mean(0), where="mid", label=label, **style)
    density.set(xlabel="rank among the negatives (1 = highest score)", ylabel="share of the negatives")
    density.set_ylim(bottom=0.0)
    _legend(density, columns=3)
    return figure


def draw_recall_bounds(records: Sequence[Record], theme: Theme) -> Figure:
    """Theorem 3.4: the width of what each metric leaves open of Recall@K; for a mean over users, and for one user."""
    counts = sorted(int(name.rsplit(" ", 1)[1]) for name in records[0].series if name.startswith("width wpauc, "))
    several = [count for count in counts if count > 1]
    shown = sorted({several[len(several) // 3], several[-1]}) if several else []
    has_mean = "width of the mean wpauc" in records[0].series
    figure, axes = theme.figure(len(shown) + has_mean, 2.9 * (len(shown) + has_mean), share_x=False)
    ks = _values(records, "k").mean(0)
    panels: list[tuple[str, tuple[str, ...], str]] = []
    if has_mean:
        panels.append(("one target a user, mean over many users", ("auc", "opauc", "wpauc"), "width of the mean {}"))
    panels += [
        (f"one user with {count} targets", ("auc", "opauc", "best opauc", "wpauc"), f"width {{}}, n+ = {count}")
        for count in shown
    ]
    for ax, (title, metrics, series) in zip(axes, panels, strict=True):
        for metric in metrics:
            label, index = METRICS[metric]
            values = _values(records, series.format(metric))
            known = np.isfinite(values).all(0)  # K >= n+
            _line(ax, ks[known], values[:, known], theme, index, label)
        ax.set(xscale="log", ylabel="open range\nof Recall@K")
        ax.set_ylim(bottom=-0.02)
        _plain(ax, "x", list(ks[known]))
        _legend(ax, title=title)
    axes[-1].set_xlabel("K (items recommended)")
    return figure


def draw_correlation(records: Sequence[Record], theme: Theme) -> Figure:
    """How each metric goes with Recall@K over users and over recommenders, and which window of ranks does best."""
    figure, (users, recommenders, windows) = theme.figure(3, 9.0, share_x=False)
    ks = _values(records, "k").mean(0)
    for ax, level, kind in ((users, "users", "pearson"), (recommenders, "recommenders", "kendall")):
        for metric in ("auc", "opauc(beta)", "opauc(K / n-)", "wpauc"):
            label, index = METRICS[metric]
            _line(ax, ks, _values(records, f"{metric}, {kind}, {level}"), theme, index, label)
        ax.set(xlabel="K (items recommended)", ylim=(None, 1.03), xscale="log")
        ax.set_ylabel(f"{kind.title()} correlation,\n{level}")
        _plain(ax, "x", list(ks))
    _legend(users)
    ends = _values(records, "ends").mean(0)
    for index, k in enumerate(ks):
        # No markers: the lines are told apart by where they peak, and named there.
        colour = theme.colours[index % len(theme.colours)]
        values = _values(records, f"window, recall@{k:g}").mean(0)
        windows.plot(ends, values, color=colour, linewidth=1.5, label=f"Recall@{k:g}")
        windows.plot(ends[values.argmax()], values.max(), color=colour, marker="o", markersize=5.0)
    windows.set(xlabel="last rank of the window of negatives", ylabel="Pearson correlation,\nusers", ylim=(None, 1.03))
    windows.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(windows, columns=4)
    return figure


FIGURES: dict[str, Callable[[Sequence[Record], Theme], Figure]] = {
    "auc_gradient": draw_auc_gradient,
    "beam_density": draw_beam_density,
    "recall_bounds": draw_recall_bounds,
    "correlation": draw_correlation,
}


def _values(records: Sequence[Record], series: str) -> np.ndarray:
    """float64 [seeds, points]"""
    return np.array([record.series[series] for record in records], dtype=np.float64)


def _line(ax: Axes, x: np.ndarray, values: np.ndarray, theme: Theme, index: int, label: str) -> None:
    mean, spread = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
    style = theme.line(index)
    ax.plot(x, mean, label=label, markersize=4.5, **style)
    if len(values) > 1:
        ax.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0.0)


def _legend(ax: Axes, columns: int = 2, title: str = "") -> None:
    """Above the panel, where it covers nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
    ax.legend(ncols=columns, title=title, alignment="left", **place)


def _plain(ax: Axes, which: str, ticks: list[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis; matplotlib's own need its math text, which the theme switches off."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    if ticks is not None:
        axis.set_ticks(ticks)
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
