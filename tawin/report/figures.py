"""The figures of a report: learning curves, Recall and NDCG before and after, the TAWin window.

Each is drawn for a light and for a dark page. Names of runs are text, never read as markup. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from statistics import fmean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from tawin_kernels import tawin_weights

from ..config import KS, Config
from ..evaluate.baselines import COUNTS, ITEM_KNN, LABELS, POPULARITY
from ..run.records import Group


@dataclass(frozen=True)
class Theme:
    """Colours of the figures on a light or a dark page; those of the lines are Okabe and Ito's, colour-blind safe."""

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

    def figure(
        self, panels: int, height: float, *, share_x: bool = True, heights: Sequence[float] | None = None
    ) -> tuple[Figure, list[Axes]]:
        """Panels one above the other, 6.4 inches wide: still readable at the width of a phone.

        Without `share_x` each has an x axis of its own. `heights`: the panels' shares of the height; None: all alike.
        """
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
        figure = Figure(figsize=(6.4, height), dpi=160, facecolor=self.background, layout=layout)
        axes = list(figure.subplots(panels, sharex=share_x, squeeze=False, height_ratios=heights)[:, 0])
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


UNTRAINED = {POPULARITY: ":", COUNTS: "-", ITEM_KNN: "-."}  # lines of the baselines in the figures

Draw = Callable[["list[Group]", Theme], Figure]

LIGHT = Theme("#ffffff", "#24292f", "#e3e6ea", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"))
DARK = Theme("#15181c", "#d5dae0", "#31373e", ("#56b4e9", "#e69f00", "#2bc69a", "#e79bc6", "#f0e442", "#ff8a5c"))


def _plot(ax: Axes, curves: list[dict[int, float]], smooth: bool, **style: Any) -> None:
    """The mean over the runs, smoothed by a moving average if asked to; each run's own values pale behind it."""
    steps = sorted(set().union(*curves))
    if not steps:
        return
    for curve in curves if smooth or len(curves) > 1 else []:
        ax.plot(list(curve), list(curve.values()), color=style["color"], linewidth=0.7, alpha=0.25)
    average = np.array([fmean(curve[step] for curve in curves if step in curve) for step in steps])
    if smooth:
        kernel = np.ones(max(1, len(steps) // 25))
        average = np.convolve(average, kernel, "same") / np.convolve(np.ones_like(average), kernel, "same")
    ax.plot(steps, average, **style)


def _plot_training(ax: Axes, groups: list[Group], theme: Theme, stage: str, key: str, **style: Any) -> None:
    for index, group in enumerate(groups):
        colour = theme.line(index)["color"] if len(groups) > 1 else theme.ink
        _plot(ax, [run.curve(stage, key) for run in group.runs], True, **{"color": colour, "linewidth": 1.5, **style})


def _plot_valid(ax: Axes, groups: list[Group], theme: Theme, stage: str) -> list[str]:
    """Valid recall at every K of a single group, or the metric that chooses checkpoints of several; their labels."""
    select = groups[0].config.evaluation.select
    lines: list[tuple[str, Group, str]] = [(group.label, group, select) for group in groups]
    if len(groups) == 1:
        lines = [(f"recall@{k}", groups[0], f"recall@{k}") for k in KS]
    for index, (_, group, key) in enumerate(lines):
        _plot(ax, [run.curve(stage, key, "valid") for run in group.runs], False, markersize=4.5, **theme.line(index))
    ax.set_ylabel("valid recall@K" if len(groups) == 1 else f"valid {select}")
    ax.set_xlabel(f"{stage.upper()} step (optimizer updates)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    return [label for label, _, _ in lines]


def png(draw: Draw, groups: list[Group], theme: Theme) -> bytes:
    """The figure as PNG; empty where there is nothing to draw yet."""
    buffer = BytesIO()
    with matplotlib.rc_context(theme.style()):
        figure = draw(groups, theme)
        if any(ax.has_data() for ax in figure.axes):
            figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
    broad = {"linewidth": 4.0, "alpha": 0.35}  # the two are often equal: one is drawn inside the other
    _plot_training(share, groups, theme, "grpo", "hit_share", **broad)
    _plot_training(share, groups, theme, "grpo", "live_share")
    share.set_ylabel("share of groups")
    keys = [theme.key("with a hit", **broad), theme.key("live (with a gradient)")]
    theme.legend(figure, _plot_valid(valid, groups, theme, "grpo"), keys)
    return figure


def draw_before_after(family: str, groups: list[Group], theme: Theme) -> Figure:
    """Recall@K or NDCG@K on test, from SFT (hollow) to GRPO (filled), the standard deviation over seeds as a bar."""
    figure, (ax,) = theme.figure(1, 4.2)
    slot = 0.8 / len(groups)
    keys = [theme.key("SFT", marker="o", mfc=theme.background), theme.key("after GRPO", marker="o")]
    best_key = [theme.key("best achievable", linestyle="--")]
    untrained: dict[str, Line2D] = {}
    for (position, k), (index, group) in ((p, g) for p in enumerate(KS) for g in enumerate(groups)):
        centre = position + (index - (len(groups) - 1) / 2) * slot
        before, after = (group.values(stage, "test", f"{family}@{k}") for stage in ("sft", "grpo"))
        style = theme.line(index)
        ends = [(centre - slot / 5, before, theme.background), (centre + slot / 5, after, style["color"])]
        ends = [end for end in ends if end[1]]
        if len(ends) == 2:
            ax.plot([x for x, _, _ in ends], [fmean(values) for _, values, _ in ends], **style)
        for x, values, fill in ends:
            error = stdev(values) if len(values) > 1 else None
            ax.errorbar(x, fmean(values), error, mfc=fill, capsize=3.0, zorder=3, **style)
        grey: dict[str, Any] = {"color": theme.ink, "alpha": 0.45, "linewidth": 1.2}
        for name, dashes in UNTRAINED.items():
            known = group.values("baselines", name, "test", f"{family}@{k}")
            if known:
                ax.hlines(fmean(known), centre - slot / 2.2, centre + slot / 2.2, linestyle=dashes, **grey)
                untrained[name] = theme.key(LABELS[name], linestyle=dashes, **grey)
        best = group.values("best_achievable", str(k)) if family == "recall" else []
        if best:
            ax.hlines(
                fmean(best), centre - slot / 2.2, centre + slot / 2.2, color=theme.ink, linestyle="--", linewidth=1.2
            )
            keys = keys[:2] + best_key
    ax.set_xticks(range(len(KS)), [str(k) for k in KS])
    ax.set_xlabel("K (items recommended)")
    ax.set_ylabel(f"test {'NDCG' if family == 'ndcg' else 'Recall'}@K")
    ax.set_ylim(bottom=0.0)
    theme.legend(figure, [group.label for group in groups] if len(groups) > 1 else [], [*keys, *untrained.values()])
    return figure


def window_weights(config: Config) -> np.ndarray:
    """The weights w_i of the negatives of a group with one hit, by rank, highest score first: fp32 [group_size - 1]."""
    negatives, tawin = config.grpo.group_size - 1, config.grpo.tawin
    if not tawin.enabled:
        return np.ones(negatives, dtype=np.float32)
    scores = -torch.arange(negatives, dtype=torch.float32)[None]  # [1, G - 1]
    return tawin_weights(scores, torch.ones_like(scores, dtype=torch.bool), tawin.kernel_options())[0].numpy()


def draw_window(groups: list[Group], theme: Theme) -> Figure:
    """What TAWin makes of the negatives of a group: weight by rank."""
    figure, (ax,) = theme.figure(1, 3.8)
    for index, group in enumerate(groups):
        ax.plot(window_weights(group.config), **theme.line(index))
    ax.axhline(1.0, color=theme.ink, linewidth=1.2, linestyle="--")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    ax.set_xlabel("rank among the negatives of a group (0 = highest score)")
    ax.set_ylabel("weight w of its advantage")
    ax.set_ylim(bottom=0.0)
    theme.legend(figure, [group.label for group in groups], [theme.key("plain GRPO", linestyle="--")])
    return figure


_CURVES = "Pale: each step or run; strong: moving average, mean over the seeds."
FIGURES: dict[str, tuple[str, Draw]] = {  # file name: caption, drawing
    "recall.png": (
        "Recall@K: the share of the test users whose next item is among the first K, before and after GRPO.",
        partial(draw_before_after, "recall"),
    ),
    "ndcg.png": (
        "NDCG@K: the same, but an item counts less the lower it stands, 1 / log2(rank + 2) from rank 0 on.",
        partial(draw_before_after, "ndcg"),
    ),
    "learning_sft.png": (f"SFT: training loss, and recall on valid. {_CURVES}", draw_sft),
    "learning_grpo.png": (f"GRPO: reward, groups that can teach something, and recall on valid. {_CURVES}", draw_grpo),
    "tawin_window.png": (
        "TAWin: what each negative of a group with one hit weighs, by its rank; the mean weight is 1.",
        draw_window,
    ),
}
