"""The figures of a table of experiments: a metric against a swept option, rows side by side, series of rows.

An entry of `Table.figures` says what to draw; a field it does not know is refused. Each data set is a panel of its own,
drawn where it has records. Lines and dots are means over seeds; bands are the standard error of the mean, bars the
sample standard deviation. House style is `tawin.report.figures`'. Theory's figures are elsewhere.

    {kind: sweep, option: grpo.tawin.anchor, metrics: [recall@1, recall@3], reference: [SFT], log: false,
     also: {TAWin: 2.0}}        also: rows that no sweep made, and where they stand; log: logarithmic x axis
    {kind: rows, metric: recall@3, rows: [SFT, TAWin]}                      rows: all, if left out
    {kind: series, series: valid recall@3, x: step, rows: [SFT, TAWin]}     x: the index, if left out; another series
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tawin.report.figures import LIGHT, Theme

from .markdown import metric_title, ordered_rows
from .plan import Table
from .statistics import Spread, records_by_seed, relative_change, spread, values_by_seed
from .store import Record

_FIELDS = {
    "sweep": ({"option", "metrics"}, {"reference", "log", "also"}),
    "rows": ({"metric"}, {"rows"}),
    "series": ({"series"}, {"x", "rows"}),
}


def draw(table: Table, records: Sequence[Record], entry: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """The figure that an entry asks for; None while there is no record to draw it from.

    Raises:
        ValueError: an unknown kind, missing or unknown fields, an option that no row sweeps, rows that do not exist.
    """
    kind = entry.get("kind")
    if kind not in _FIELDS:
        raise ValueError(f"figures: kind: expected one of {sorted(_FIELDS)}, got {kind!r}")
    needed, optional = _FIELDS[kind]
    fields = entry.keys() - {"kind", "caption"}
    if not needed <= fields <= needed | optional:
        raise ValueError(
            f"figures: {kind}: expected the fields {sorted(needed)}, perhaps {sorted(optional)}, got {sorted(fields)}"
        )
    for name in (*entry.get("rows", ()), *entry.get("reference", ()), *entry.get("also", ())):
        if name not in {row.name for row in table.rows}:
            raise ValueError(f"figures: {kind}: expected rows of table {table.name!r}, got {name!r}")
    return {"sweep": _draw_sweep, "rows": _draw_rows, "series": _draw_series}[kind](table, records, entry, theme)


def caption(table: Table, entry: Mapping[str, Any]) -> str:
    """The entry's own caption, or what the figure shows in a sentence."""
    if "caption" in entry:
        return str(entry["caption"])
    if entry["kind"] == "sweep":
        subject = f"{', '.join(map(metric_title, entry['metrics']))} against {entry['option']}"
        change = f", as change over {table.baseline}" if table.baseline else ""
        return f"{subject}{change}: mean over seeds, band: standard error, ring: best value."
    if entry["kind"] == "rows":
        return f"{metric_title(entry['metric'])}: mean and sample standard deviation over seeds."
    if entry["kind"] == "series":
        return f"{entry['series']}: mean over seeds, band: standard error."
    return str(entry.get("name"))


def _draw_sweep(table: Table, records: Sequence[Record], entry: Mapping[str, Any], theme: Theme) -> Figure | None:
    option, metrics = entry["option"], entry["metrics"]
    _require_few("sweep: metrics", metrics, theme)
    swept = [row for row in table.rows if option in row.swept]
    if not swept:
        options = sorted({name for row in table.rows for name in row.swept})
        raise ValueError(f"figures: sweep: option: expected one that a row sweeps, {options}, got {option!r}")
    data = [each for each in table.data if _has_records(records, each, [row.name for row in swept])]
    if not data:
        return None
    figure, axes = theme.figure(len(data), 1.0 + 2.7 * len(data))
    for ax, each in zip(axes, data, strict=True):
        rows = ordered_rows(table, each)
        values = {row.name: row.swept[option] for row in rows if option in row.swept}
        values |= {row.name: entry["also"][row.name] for row in rows if row.name in entry.get("also", {})}
        places = _places(values, option)
        for index, metric in enumerate(metrics):
            style = theme.line(index)
            for name in entry.get("reference", ()):
                level = relative_change(records, each, name, table.baseline, metric)
                if level is not None:
                    ax.axhline(level.mean, color=style["color"], linewidth=1.2, linestyle=":")
            changes = {
                place: relative_change(records, each, name, table.baseline, metric) for place, name in places.items()
            }
            points = {place: change for place, change in changes.items() if change is not None}
            if points:
                _plot_with_band(ax, points, style)
                _ring_the_best(ax, points, style)
        if table.baseline is not None:
            ax.axhline(0.0, color=theme.ink, linewidth=1.0, linestyle="--")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        if entry.get("log"):
            ax.set_xscale("log")
        ax.margins(x=0.03)  # so that rings at the ends are whole
        ax.set_xticks(list(places), [_value_text(values[name]) for name in places.values()], minor=False)
        ax.minorticks_off()
        ax.set_ylabel("change over the baseline" if table.baseline else "metric")
        ax.set_title(each, loc="left")
    axes[-1].set_xlabel(option)
    keys = [theme.key(f"{name} (in the line's colour)", linestyle=":") for name in entry.get("reference", ())]
    if table.baseline is not None:
        keys.append(theme.key(f"baseline: {table.baseline}", linestyle="--"))
    keys.append(theme.key("best value", marker="o", markersize=10.0, mfc="none", linestyle="none"))
    theme.legend(figure, [metric_title(metric) for metric in metrics], keys)
    return figure


def _places(values: Mapping[str, Any], option: str) -> dict[float, str]:
    """Where each row (name -> value) stands on the x axis: at its value if all are numbers, else in turn."""
    if len(set(map(str, values.values()))) < len(values):
        raise ValueError(
            f"figures: sweep: expected one row a value of {option!r}, got the rows {list(values)}; draw tables that "
            "sweep one option"
        )
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        return dict(sorted((float(value), name) for name, value in values.items()))
    return {float(place): name for place, name in enumerate(values)}


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plot_with_band(ax: Axes, points: Mapping[float, Spread], style: Mapping[str, Any]) -> None:
    """The means as a line and the standard error around it."""
    means = np.array([point.mean for point in points.values()])
    errors = np.array([point.standard_error or 0.0 for point in points.values()])
    places = list(points)
    ax.fill_between(places, means - errors, means + errors, color=style["color"], alpha=0.15, linewidth=0.0)
    ax.plot(places, means, markersize=4.0, **style)


def _ring_the_best(ax: Axes, points: Mapping[float, Spread], style: Mapping[str, Any]) -> None:
    best = max(points, key=lambda place: points[place].mean)
    ring = {**style, "marker": "o", "markersize": 10.0, "mfc": "none", "linestyle": "none"}
    ax.plot(best, points[best].mean, **ring)


def _draw_rows(table: Table, records: Sequence[Record], entry: Mapping[str, Any], theme: Theme) -> Figure | None:
    metric = entry["metric"]
    found = {}
    for each in table.data:
        names = [row.name for row in ordered_rows(table, each) if row.name in entry.get("rows", [row.name])]
        runs = {name: list(values_by_seed(records, each, name, metric).values()) for name in names}
        spreads = {name: spread(values) for name, values in runs.items() if values}
        if spreads:
            found[each] = spreads
    if not found:
        return None
    lines = sum(len(spreads) + 2 for spreads in found.values())
    heights = [len(spreads) + 1 for spreads in found.values()]
    figure, axes = theme.figure(len(found), 0.5 + 0.21 * lines, share_x=False, heights=heights)
    for ax, (each, spreads) in zip(axes, found.items(), strict=True):
        for place, (name, figures) in enumerate(spreads.items()):
            colour = theme.colours[1] if name == table.baseline else theme.colours[0]
            ax.errorbar(figures.mean, place, xerr=figures.deviation, color=colour, marker="o", capsize=3.0)
        if table.baseline in spreads:
            ax.axvline(spreads[table.baseline].mean, color=theme.colours[1], linewidth=1.0, linestyle="--", zorder=0)
        ax.set_yticks(range(len(spreads)), list(spreads))
        ax.set_ylim(len(spreads) - 0.5, -0.5)
        ax.margins(x=0.03)  # so that the ends of the bars are whole
        ax.grid(axis="x", linewidth=0.6)
        ax.grid(visible=False, axis="y")
        ax.set_title(each, loc="left")
    axes[-1].set_xlabel(metric_title(metric))
    return figure


def _draw_series(table: Table, records: Sequence[Record], entry: Mapping[str, Any], theme: Theme) -> Figure | None:
    name = entry["series"]
    names = list(entry.get("rows", [row.name for row in table.rows]))
    holders = [record for record in records if name in record.series and record.row in names]
    data = [each for each in table.data if _has_records(holders, each, names)]
    if not data:
        return None
    drawn = [row for row in names if any(record.row == row for record in holders)]
    _require_few("series: rows", drawn, theme)
    figure, axes = theme.figure(len(data), 1.0 + 2.7 * len(data))
    for ax, each in zip(axes, data, strict=True):
        for index, row in enumerate(drawn):
            runs = [_curve(record, name, entry.get("x")) for record in records_by_seed(holders, each, row).values()]
            places = sorted(set().union(*runs))
            points = {place: spread([run[place] for run in runs if place in run]) for place in places}
            _plot_with_band(ax, points, {**theme.line(index), "markevery": max(1, len(places) // 8)})
        ax.set_title(each, loc="left")
        ax.set_ylabel(name)
    axes[-1].set_xlabel(entry.get("x", "index"))
    theme.legend(figure, drawn)
    return figure


def _curve(record: Record, name: str, x: str | None) -> dict[float, float]:
    values = record.series[name]
    places = list(range(len(values))) if x is None else record.series.get(x, [])
    if len(places) != len(values):
        raise ValueError(
            f"figures: series: expected as many values of {x!r} as of {name!r} in row {record.row!r}, data "
            f"{record.data!r}, seed {record.seed}, got {len(places)} and {len(values)}"
        )
    return dict(zip(map(float, places), values, strict=True))


def _require_few(where: str, lines: Sequence[str], theme: Theme) -> None:
    if len(lines) > len(theme.colours):
        raise ValueError(f"figures: {where}: expected at most {len(theme.colours)}, a colour each, got {list(lines)}")


def _has_records(records: Sequence[Record], data: str, names: Sequence[str]) -> bool:
    return any(record.data == data and record.row in names for record in records)
