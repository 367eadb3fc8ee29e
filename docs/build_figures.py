"""Draws the figures of docs/: `python docs/build_figures.py` writes docs/figures/*.svg.

What is drawn comes from the ops themselves. Knows nothing of experiments; their figures are in experiments/results.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from tawin_kernels import TAWin, tawin_weights

FIGURES = Path(__file__).parent / "figures"
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


if __name__ == "__main__":
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tawin"  # the same bytes each time
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a third of the size
    FIGURES.mkdir(exist_ok=True)
    draw_weights()
