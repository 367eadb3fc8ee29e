"""Draws the figures of docs/: `python docs/build_figures.py` writes docs/figures/*.svg.

Weights come from the ops themselves, seconds from a file in bench/results. The figures of the experiments are in
experiments/results.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import matplotlib
import torch
from matplotlib import pyplot
from tawin_kernels import TAWin, tawin_weights

FIGURES = Path(__file__).parent / "figures"
STEP = Path(__file__).parents[1] / "bench/results/training-step-amd-epyc-2026-11-24T192830Z.json"
WAYS = {  # of bench.bench_training_step: its label, and its colour
    "rere": ("ReRe's way: the prompt repeated for each beam", "#8c959f"),
    "shared_prefix": ("shared prefix, with TRL's log-prob head", "#8c959f"),
    "ours": ("tawin", "#d55e00"),
}
INKS = {"light": "#24292f", "dark": "#d5dae0"}
NEGATIVES = 15  # a group of 16 with one hit

PANELS = {
    "anchor (window 3, temperature 1)": {f"{a}": TAWin(anchor=a, window=3.0) for a in (0.0, 2.0, 4.0, 9.0)},
    "window (anchor 4, temperature 1)": {f"{k}": TAWin(anchor=4.0, window=k) for k in (1.0, 3.0, 8.0, 15.0)},
    "temperature (anchor 4, window 3)": {f"{t}": TAWin(4.0, 3.0, temperature=t) for t in (0.25, 1.0, 4.0)},
}


def weights_of(tawin: TAWin) -> list[float]:
    """The weight of each negative of one group, best negative first."""
    scores = -torch.arange(NEGATIVES, dtype=torch.float64)[None]
    return tawin_weights(scores, torch.ones_like(scores, dtype=torch.bool), tawin)[0].tolist()


def draw_weights() -> None:
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 2.9), sharey=True, layout="constrained")
    for axis, (title, options) in zip(axes, PANELS.items(), strict=True):
        for name, tawin in options.items():
            axis.plot(weights_of(tawin), marker="o", markersize=3, label=name)
        axis.axhline(1.0, color="grey", linewidth=0.6, linestyle="dotted")
        axis.set(title=title, xlabel="rank among the negatives")
        axis.legend(frameon=False)
    axes[0].set_ylabel("weight")
    figure.savefig(FIGURES / "tawin-weights.svg", metadata={"Date": None})


def step_seconds() -> dict[str, float]:
    """The median of a whole step of each way, the case with an instruction."""
    cases = json.loads(STEP.read_text(encoding="utf-8"))["cases"]
    (case,) = (case for case in cases if case["case"] == "instruction")
    return {way["way"]: median(way["seconds"]) for way in case["ways"] if "seconds" in way}


def draw_step(theme: str) -> None:
    """README's first figure, for a light and for a dark page: nothing behind it, so that either shows through."""
    seconds, ink = step_seconds(), INKS[theme]
    figure, axis = pyplot.subplots(figsize=(8.2, 1.75), layout="constrained")
    for place, (way, (_, colour)) in enumerate(WAYS.items()):
        axis.barh(-place, seconds[way], color=colour, height=0.62)
        ratio = f"   {seconds[way] / seconds['ours']:.1f} x" if way != "ours" else ""
        axis.text(seconds[way] + 0.06, -place, f"{seconds[way]:.2f} s{ratio}", va="center", color=ink)
    axis.set_yticks([-place for place in range(len(WAYS))], [label for label, _ in WAYS.values()], color=ink)
    axis.set_xlim(0, 1.4 * max(seconds.values()))
    axis.xaxis.set_visible(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    figure.savefig(FIGURES / f"step-{theme}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tawin"  # the same bytes each time
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a third of the size
    FIGURES.mkdir(exist_ok=True)
    draw_weights()
    for theme in INKS:
        draw_step(theme)
