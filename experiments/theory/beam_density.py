"""Lemma 3.2 and Proposition 3.3: the negatives that beam search finds follow the density of OPAUC as the beam widens.

OPAUC(beta)'s negatives are uniform over the ranks 1..M, beta = M / n-. A beam of width W returns W items, M of them
negatives (W, or W - 1 where the target is among them). Were they the M best ones, a uniform draw from the group would
be exactly a draw from OPAUC(M / n-)'s density, and the mean margin against them that of OPAUC. So all there is to check
is which M they are. The score of every item is computed here, nothing pruned, and measured are, by W and averaged over
users:

    overlap          share of the beam's negatives that are among the M best. For one user the total variation distance
                     between the beam's uniform density and OPAUC's is 1 - overlap.
    pooled distance  total variation distance between the mean densities over rank: smaller, since users' misses differ
    reach            the false-positive rate that the beam reaches, over M / n-: 1 where it misses nothing
    margin error     |margin against the beam's negatives - OPAUC's margin| / OPAUC's margin, of the mean over users
    opauc error      the same of the share of won pairs, absolute, with `tawin.metrics.opauc`
    hit share        users whose target is among the beam's items. The others' groups have no hit, hence no gradient:
                     GRPO on beams is OPAUC's margin for these users alone, and is silent about those who need it most

In the limit only: a beam prunes prefixes, and a good item below a bad prefix is lost. What can be said of a finite W:
* from W = nodes of the widest level before the last on nothing is pruned: the distance is exactly 0. For a large
  catalogue that is no small fraction of it.
* scores here are log p, and a prefix's p is at least that of any item below it; at most W prefixes of a level can have
  p >= 1 / W. So an item with p > 1 / W is never lost ("lost above 1 / W", must be 0).

Drawn from the policy instead (softmax sampling; arXiv 2302.03472 calls it a soft OPAUC), negatives have the density
p(item) / (1 - p(target)), which is uniform over no [0, beta]: "softmax distance" is its total variation distance to the
nearest of OPAUC's densities, beta chosen anew for each user.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tawin_kernels.types import Normalizer

from tawin.metrics import opauc
from tawin.search.completions import beam_search

from .options import read, require
from .setting import Setting, make_setting

Result = tuple[dict[str, float], dict[str, list[float]]]


@dataclass(frozen=True)
class Options:
    """The small policy, its catalogue and the widths."""

    items: int = 400
    users: int = 1500
    codes: int = 16
    hidden_size: int = 32
    steps: int = 150
    """Training steps of the policy; 0: random weights."""
    prompts: int = 200
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    normalizer: str = "vocab"
    """"vocab" or "trie": what log p is a softmax over, as in grpo.normalizer."""
    shown_width: int = 16
    """Whose density over the ranks is kept for the figure; one of the widths."""

    def __post_init__(self) -> None:
        require(min(self.widths) >= 1, "widths", "numbers of at least 1", self.widths)
        require(max(self.widths) < self.items, "widths", f"numbers below items ({self.items})", self.widths)
        require(self.normalizer in ("vocab", "trie"), "normalizer", "'vocab' or 'trie'", self.normalizer)
        require(self.shown_width in self.widths, "shown_width", f"one of the widths {self.widths}", self.shown_width)


def run(options: dict[str, Any], seed: int) -> Result:
    """Values: each measure by width ("overlap, W = 16"), "softmax distance", "widest level", recall of the policy.

    Series: "width", the measures by width, "rank" and the mean densities over rank at `shown_width`: "beam density",
    "opauc density", and "softmax density".
    """
    chosen = read(Options, options)
    setting = make_setting(
        users=chosen.users,
        items=chosen.items,
        codes=chosen.codes,
        hidden_size=chosen.hidden_size,
        steps=chosen.steps,
        prompts=chosen.prompts,
        seed=seed,
    )
    normalizer: Normalizer = "trie" if chosen.normalizer == "trie" else "vocab"
    scores = setting.item_scores(normalizer).numpy()
    targets = setting.targets.numpy()
    ranks = negative_ranks(scores, targets)
    levels = setting.catalog.trie.level_offsets
    target_ranks = (scores > scores[np.arange(len(targets)), targets][:, None]).sum(1)
    values = {
        "widest level": float(max(end - start for start, end in pairwise(levels[:-1]))),
        "recall@10 of the policy": float((target_ranks < 10).mean()),
    }
    series: dict[str, list[float]] = {"width": [float(width) for width in chosen.widths]}
    for width in chosen.widths:
        beams = _beams(setting, width, normalizer)
        measured, densities = compare(scores, ranks, targets, beams)
        for name, value in measured.items():
            values[f"{name}, W = {width}"] = value
            series.setdefault(name, []).append(value)
        if width == chosen.shown_width:
            shown = min(3 * width, ranks.shape[1] - 1)
            series["rank"] = [float(rank + 1) for rank in range(shown)]
            series |= {name: density[:shown].tolist() for name, density in densities.items()}
    softmax, density = softmax_distance(setting.item_scores("trie").numpy(), targets)
    values["softmax distance"] = softmax
    series["softmax density"] = density[: len(series["rank"])].tolist()
    return values, series


def compare(
    scores: np.ndarray, ranks: np.ndarray, targets: np.ndarray, beams: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The measures of the module's docstring for beams of one width.

    Args:
        scores: log p of every item, [B, I].
        ranks: zero-based rank of every item among the negatives of its user, -1 for the target: int64 [B, I].
        targets: int64 [B].
        beams: int64 [B, W], the items that beam search returned, all found.

    Returns:
        The measures, and the mean densities over rank [I - 1], "beam density" and "opauc density".
    """
    users, items = scores.shape
    beam_density, opauc_density = np.zeros(items - 1), np.zeros(items - 1)
    overlap, reach, margins, best_margins, wins, best_wins = ([] for _ in range(6))
    lost = 0
    for user in range(users):
        found = beams[user][beams[user] != targets[user]]
        target_score = scores[user, targets[user]]
        lost += int(np.isin(np.flatnonzero(scores[user] > -np.log(beams.shape[1])), beams[user], invert=True).sum())
        if not len(found):
            continue  # W = 1 and the target is what it found
        at = ranks[user, found]
        beam_density[at] += 1 / len(found)
        opauc_density[: len(found)] += 1 / len(found)
        overlap.append((at < len(found)).mean())
        reach.append((at.max() + 1) / len(found))
        negatives = np.delete(scores[user], targets[user])
        best = np.sort(negatives)[::-1][: len(found)]
        margins.append(target_score - scores[user, found].mean())
        best_margins.append(target_score - best.mean())
        wins.append((target_score > scores[user, found]).mean())
        best_wins.append(opauc([target_score], negatives, len(found) / len(negatives)))
    counted = len(overlap)
    beam_density, opauc_density = beam_density / counted, opauc_density / counted
    expected = float(np.mean(best_margins))
    measures = {
        "overlap": float(np.mean(overlap)),
        "distance": 1.0 - float(np.mean(overlap)),
        "pooled distance": float(np.abs(beam_density - opauc_density).sum() / 2),
        "reach": float(np.mean(reach)),
        "margin error": abs(float(np.mean(margins)) - expected) / abs(expected),
        "opauc error": abs(float(np.mean(wins)) - float(np.mean(best_wins))),
        "hit share": float((beams == targets[:, None]).any(1).mean()),
        "lost above 1 / W": float(lost),
    }
    return measures, {"beam density": beam_density, "opauc density": opauc_density}


def softmax_distance(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Of policy-drawn negatives: mean distance to the nearest density of OPAUC, and the mean density over rank [I - 1].

    scores: log p of every item, [B, I], normalised over the catalogue.
    """
    users, items = scores.shape
    nearest, mean = [], np.zeros(items - 1)
    sizes = np.arange(1, items)
    for user in range(users):
        density = np.sort(np.exp(np.delete(scores[user], targets[user])))[::-1]
        density = density / density.sum()
        mean += density / users
        # p falls with the rank, so p > 1 / M holds for the first c ranks; c <= M as the sum is 1.
        above = len(density) - np.searchsorted(density[::-1], 1.0 / sizes, side="right")  # [M]
        excess = np.concatenate([[0.0], np.cumsum(density)])[above] - above / sizes
        beyond = 1.0 - np.cumsum(density)  # mass behind rank M, all of it excess
        nearest.append(float((excess + beyond).min()))
    return float(np.mean(nearest)), mean


def negative_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Zero-based rank of every item among the negatives of its user, -1 for the target: int64 [B, I]."""
    order = np.argsort(-scores, axis=1, kind="stable")
    is_target = order == targets[:, None]
    ranks = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.where(is_target, -1, np.cumsum(~is_target, axis=1) - 1), axis=1)
    return ranks


def _beams(setting: Setting, width: int, normalizer: Normalizer) -> np.ndarray:
    found = beam_search(
        setting.model, setting.input_ids, setting.attention_mask, setting.catalog.trie, width, normalizer=normalizer
    )
    return found.item_ids.numpy()
