"""The report of one or several runs: a self-contained HTML page and its figures as PNG files.

It reads what a run folder holds so far (config.yaml, metrics.jsonl, results.json), so it also works on a run that is
still being written. Runs whose configs are equal but for the seed are one group: mean and sample standard deviation over
its runs. It knows nothing of models and data. Whatever comes from outside (folder names, config, results) is text here:
escaped in the page, and never read as markup by the figures.
"""

from __future__ import annotations

import dataclasses
import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tawin_kernels import TAWin, tawin_weights

from .config import KS, Config, dump_yaml
from .run_folder import RunFolder, write_atomically


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far."""

    name: str
    config: Config
    lines: list[dict[str, Any]]  # metrics.jsonl
    results: dict[str, Any]  # results.json, empty while there is none

    def curve(self, stage: str, key: str, part: str | None = None) -> dict[int, float]:
        """One figure of a stage by step; `part` "valid" takes it from the evaluation lines."""
        of_stage = [line for line in self.lines if line["stage"] == stage]
        points = {line["step"]: (line.get(part, {}) if part else line).get(key) for line in of_stage}
        return {step: points[step] for step in sorted(points) if isinstance(points[step], int | float)}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    runs: list[Run]

    @property
    def label(self) -> str:
        others = len(self.runs) - 1
        return self.runs[0].name + (f" and {others} more seed{'s' * (others > 1)}" if others else "")

    @property
    def config(self) -> Config:
        return self.runs[0].config

    def values(self, *path: str) -> list[float]:
        """The number at `path` in results.json of every run that has it."""
        found = (_look_up(run.results, *path) for run in self.runs)
        return [float(value) for value in found if isinstance(value, int | float)]


def _look_up(values: Any, *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _read_runs(folders: list[Path]) -> list[Group]:
    unique = len({folder.name for folder in folders}) == len(folders)
    members: dict[Config, list[Run]] = {}
    for folder in folders:
        run = RunFolder.open(folder)
        name = folder.name if unique else f"{folder.parent.name}/{folder.name}"
        # A folder's name may hold line breaks, and bytes that are not UTF-8.
        name = " ".join(name.encode("utf-8", "backslashreplace").decode("utf-8").split())
        alike = members.setdefault(dataclasses.replace(run.config, seed=0), [])
        alike.append(Run(name, run.config, _read_metrics(folder / "metrics.jsonl"), run.results))
    return [Group(runs) for runs in members.values()]


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that is only half written yet is left out."""
    raw = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            values = json.loads(line)
            if not (isinstance(values["stage"], str) and isinstance(values["step"], int)):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            if number == len(raw):
                break
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with 'stage' and 'step', got {line[:80]!r}"
            ) from None
        lines.append(values)
    return lines


@dataclass(frozen=True)
class Theme:
    """Colours of the figures on a light or a dark page; those of the lines are Okabe and Ito's colour-blind safe ones."""

    background: str
    ink: str
    grid: str
    colours: tuple[str, ...]

    def style(self) -> dict[str, Any]:
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        return dict.fromkeys(inked, self.ink) | {
            "axes.facecolor": self.background,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "font.family": ["DejaVu Sans"],
            "font.size": 10.0,
            "legend.frameon": False,
            "text.parse_math": False,  # a run may be called "$x$"
        }

    def figure(self, panels: int, height: float) -> tuple[Figure, list[Axes]]:
        """Panels one above the other, 6.4 inches wide: still readable at the width of a phone."""
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        figure = Figure(figsize=(6.4, height), dpi=160, facecolor=self.background, layout=layout)
        axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
        for ax in axes:
            ax.grid(axis="y", linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
            ax.margins(x=0.02)
        return figure, axes

    def line(self, index: int) -> dict[str, Any]:
        """Colour and marker of the line number `index`."""
        return {"color": self.colours[index % len(self.colours)], "marker": "osD^vP"[index % 6], "linewidth": 1.5}

    def key(self, label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **{"color": self.ink, **style})

    def legend(self, figure: Figure, lines: Sequence[str], keys: Iterable[Line2D] = ()) -> None:
        """Below the panels: the numbered lines, then `keys`, which say what dashes and fillings mean."""
        labels = [label if len(label) <= 48 else f"{label[:47]}…" for label in lines]
        labels = [f" {label}" if label.startswith("_") else label for label in labels]  # matplotlib leaves "_x" out
        handles = [*(self.key(label, **self.line(i)) for i, label in enumerate(labels)), *keys]
        longest = max(len(str(handle.get_label())) for handle in handles)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), max(1, 72 // (longest + 6))))


LIGHT = Theme("#ffffff", "#24292f", "#e3e6ea", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"))
DARK = Theme("#15181c", "#d5dae0", "#31373e", ("#56b4e9", "#e69f00", "#2bc69a", "#e79bc6", "#f0e442", "#ff8a5c"))


def _plot(ax: Axes, curves: list[dict[int, float]], smooth: bool, **style: Any) -> None:
    """The mean over the runs, smoothed by a moving average if asked to; each run's own values pale behind it."""
    steps = sorted(set().union(*curves))
    if not steps:
        return
    for curve in curves if smooth or len(curves) > 1 else []:
        ax.plot(list(curve), list(curve.values()), color=style["color"], linewidth=0.7, alpha=0.25)
    average = np.array([mean(curve[step] for curve in curves if step in curve) for step in steps])
    if smooth:
        kernel = np.ones(max(1, len(steps) // 25))
        average = np.convolve(average, kernel, "same") / np.convolve(np.ones_like(average), kernel, "same")
    ax.plot(steps, average, **style)


def _plot_training(ax: Axes, groups: list[Group], theme: Theme, stage: str, key: str, **style: Any) -> None:
    for index, group in enumerate(groups):
        colour = theme.line(index)["color"] if len(groups) > 1 else theme.ink
        _plot(ax, [run.curve(stage, key) for run in group.runs], True, color=colour, linewidth=1.5, **style)


def _plot_valid(ax: Axes, groups: list[Group], theme: Theme, stage: str) -> list[str]:
    """Valid recall at every K of a single group, or the metric that chooses the checkpoints of several; their labels."""
    select = groups[0].config.evaluation.select
    lines = [(group.label, group, select) for group in groups]
    if len(groups) == 1:
        lines = [(f"recall@{k}", groups[0], f"recall@{k}") for k in KS]
    for index, (_, group, key) in enumerate(lines):
        _plot(ax, [run.curve(stage, key, "valid") for run in group.runs], False, markersize=4.5, **theme.line(index))
    ax.set_ylabel("valid recall@K" if len(groups) == 1 else f"valid {select}")
    ax.set_xlabel(f"{stage.upper()} step (optimizer updates)")
    return [label for label, _, _ in lines]


def draw_sft(groups: list[Group], theme: Theme) -> Figure:
    """Loss and valid recall over the steps of SFT."""
    figure, (loss, valid) = theme.figure(2, 5.2)
    _plot_training(loss, groups, theme, "sft", "loss")
    loss.set_ylabel("loss (nats per token)")
    theme.legend(figure, _plot_valid(valid, groups, theme, "sft"))
    return figure


def draw_grpo(groups: list[Group], theme: Theme) -> Figure:
    """Mean reward, shares of groups with a hit and with a gradient, and valid recall over the steps of GRPO."""
    figure, (reward, share, valid) = theme.figure(3, 7.0)
    _plot_training(reward, groups, theme, "grpo", "reward")
    reward.set_ylabel("mean reward")
    _plot_training(share, groups, theme, "grpo", "hit_share")
    _plot_training(share, groups, theme, "grpo", "live_share", linestyle=":")
    share.set_ylabel("share of groups")
    keys = [theme.key("with a hit"), theme.key("live (with a gradient)", linestyle=":")]
    theme.legend(figure, _plot_valid(valid, groups, theme, "grpo"), keys)
    return figure


def draw_before_after(family: str, groups: list[Group], theme: Theme) -> Figure:
    """Recall@K or NDCG@K on test, from SFT (hollow) to GRPO (filled), the standard deviation over seeds as a bar."""
    figure, (ax,) = theme.figure(1, 4.2)
    slot = 0.8 / len(groups)
    keys = [theme.key("SFT", marker="o", mfc=theme.background), theme.key("after GRPO", marker="o")]
    best_key = [theme.key("best achievable", linestyle="--")]
    for (position, k), (index, group) in ((p, g) for p in enumerate(KS) for g in enumerate(groups)):
        centre = position + (index - (len(groups) - 1) / 2) * slot
        before, after = (group.values(stage, "test", f"{family}@{k}") for stage in ("sft", "grpo"))
        style = theme.line(index)
        ends = [(centre - slot / 5, before, theme.background), (centre + slot / 5, after, style["color"])]
        ends = [end for end in ends if end[1]]
        ax.plot([x for x, _, _ in ends], [mean(values) for _, values, _ in ends], **style)
        for x, values, fill in ends:
            error = stdev(values) if len(values) > 1 else None
            ax.errorbar(x, mean(values), error, mfc=fill, capsize=3.0, zorder=3, **style)
        best = group.values("best_achievable", str(k)) if family == "recall" else []
        if best:
            ax.hlines(mean(best), centre - slot / 2.2, centre + slot / 2.2, color=theme.ink, linestyle="--", linewidth=1.2)
            keys = keys[:2] + best_key
    ax.set_xticks(range(len(KS)), [str(k) for k in KS])
    ax.set_xlabel("K (items recommended)")
    ax.set_ylabel(f"test {'NDCG' if family == 'ndcg' else 'Recall'}@K")
    ax.set_ylim(bottom=0.0)
    theme.legend(figure, [group.label for group in groups] if len(groups) > 1 else [], keys)
    return figure
