"""A run on the log of the next month: how well it does on what came after it, new items or not.

Called by `tawin evaluate RUN --data NEXT --unknown ...`. An example is a user's last interaction, or what the run's
split by time says. Users who did nothing since the run's own log are no example, as far as that log is still there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from ..catalog.catalog import Catalog
from ..catalog.extension import match_items
from ..config import Config, EvaluationConfig
from ..data.columns import DataError
from ..data.dataset import Dataset, Examples
from ..data.digest import histories_in, read_origin, require_same_data
from ..data.ragged import Ragged
from ..evaluate.ranking import ranks_of
from ..metrics import ranking_metrics
from ..run.folder import RunFolder
from ..serve.load import evaluation_of, load_data, load_serving
from .extend import extended_config
from .job import prepare

Unknown = Literal["count", "leave_out", "extend"]


@dataclass(frozen=True, eq=False)
class LaterRanks:
    """Where the model ranks what users took in a later log, and over whom that is."""

    ranks: np.ndarray
    """int64 [users], zero-based rank of each target, -1 = not found."""
    is_new: np.ndarray
    """bool [users], whether the run does not know the target."""
    known_users: int
    """Users whose target the run knows, those in `ranks` or not."""
    new_users: int
    """Users whose target it does not know."""
    without_history: int
    """Users whose history has no item that the model knows: misses, or left out with the unknown targets."""
    nothing_new: int | None
    """Users left out as they did nothing since the run's own log; None: that log is not there any more."""
    items: dict[str, int]
    """known, new and gone, of the later log's items."""

    @property
    def figures(self) -> dict[str, float]:
        """Recall, NDCG and WPAUC at 1, 3, 5, 10 over all of `ranks`."""
        return ranking_metrics(self.ranks)


def evaluate_later(
    run: RunFolder,
    data: str | Path,
    unknown: Unknown,
    *,
    stage: str | None = None,
    users: int | None = None,
    evaluation: EvaluationConfig | None = None,
    vectors: str | None = None,
    progress: bool = False,
) -> LaterRanks:
    """Ranks of a run's best model on a later log.

    Args:
        data: the later log's folder, prepared as the run's was.
        unknown: what becomes of items that the run does not know. They never stand in a history of "count" and
            "leave_out". count: a target that is one is a miss. leave_out: its user is in no figure. extend: they get
            tokens, as in `tawin extend` without any training, and are recommended.
        stage: "sft" or "grpo"; None: grpo.
        users: so many of them, sampled with the run's seed; None: all.
        evaluation: None: the run's.
        vectors: a .npy of the later log's items, for "extend" of a run that has `catalog.vectors`.

    Raises:
        DataError: data that cannot be used, or without any item that the run knows.
        ValueError: no model of the stage; nobody to evaluate.
    """
    config = _without_training(extended_config(run, data, stage), vectors)
    asked = _ask(run, config, unknown, stage, f"--data {data}")
    examples, is_new = asked.examples, asked.is_new
    has_history = Ragged.of(examples.histories).lengths > 0
    rows = np.flatnonzero(has_history & ~is_new) if unknown == "leave_out" else np.arange(len(examples))
    if users is not None and users < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, size=users, replace=False))
    if len(rows) == 0:
        raise ValueError(f"--data {data}: expected a user with something new that the run knows, got none")
    ranks = np.full(len(rows), -1, dtype=np.int64)
    can = has_history[rows] & (examples.targets[rows] >= 0)
    wanted = evaluation or evaluation_of(run)
    ranks[can] = ranks_of(asked.model, asked.catalog, examples.take(rows[can]), wanted, progress=progress)
    return LaterRanks(
        ranks=ranks,
        is_new=is_new[rows],
        known_users=int((~is_new).sum()),
        new_users=int(is_new.sum()),
        without_history=int((~has_history).sum()),
        nothing_new=asked.nothing_new,
        items=asked.items,
    )


@dataclass(frozen=True)
class _Asked:
    """A model, and the examples that it is asked for in its catalogue's numbers."""

    model: nn.Module
    catalog: Catalog
    examples: Examples
    """Without the unknown items of histories; an unknown target is -1."""
    is_new: np.ndarray
    """bool [N], whether the run does not know the target."""
    nothing_new: int | None
    items: dict[str, int]


def _ask(run: RunFolder, config: Config, unknown: Unknown, stage: str | None, where: str) -> _Asked:
    serving = load_serving(run.path, stage)
    model, catalog = serving.model, serving.catalog
    if unknown == "extend":
        job = prepare(config, None)
        dataset, examples = job.dataset, job.split.test
        extension = match_items(catalog, dataset.items.names, where)
        model, catalog = job.model.to(next(model.parameters()).device).eval(), job.catalog.to(catalog.trie.device)
        places = np.arange(len(dataset.items))
    else:
        dataset, split = load_data(config)
        extension, examples = match_items(catalog, dataset.items.names, where), split.test
        places = extension.places
    before = _own_data(run)
    nothing_new = None
    if before is not None:
        goes_on = np.isin(examples.user_ids, dataset.user_ids[~histories_in(dataset, before)])
        examples, nothing_new = examples.take(np.flatnonzero(goes_on)), int((~goes_on).sum())
    is_new = extension.is_new[examples.targets]
    examples = _in_catalogue(examples, places, config.split.max_history)
    return _Asked(model, catalog, examples, is_new, nothing_new, extension.counts())


def _without_training(config: Config, vectors: str | None) -> Config:
    """Nothing is trained; who trained on everything is evaluated on each user's last interaction."""
    method = "leave_one_out" if config.split.method == "none" else config.split.method
    return dataclasses.replace(
        config,
        split=dataclasses.replace(config.split, method=method),
        catalog=dataclasses.replace(config.catalog, vectors=vectors or config.catalog.vectors),
        sft=dataclasses.replace(config.sft, epochs=0),
        grpo=dataclasses.replace(config.grpo, steps=0),
    )


def _own_data(run: RunFolder) -> Dataset | None:
    """What the run was trained on, where it is still there."""
    try:
        dataset, _ = load_data(run.config, Catalog.load(run.catalog))
        require_same_data(dataset, read_origin(run.catalog), "")
    except DataError:
        return None
    return dataset


def _in_catalogue(examples: Examples, places: np.ndarray, max_history: int) -> Examples:
    """Items by their places in the catalogue; those of histories without one are left out of them."""
    seen = Ragged.of(examples.histories if examples.seen is None else examples.seen)
    flat, owners = places[seen.flat()], np.repeat(np.arange(len(seen)), seen.lengths)
    counts = np.bincount(owners[flat >= 0], minlength=len(seen)).astype(np.int64)
    stops = np.cumsum(counts)
    known = Ragged(flat[flat >= 0], stops - counts, stops)
    return Examples(examples.user_ids, known.last(max_history), places[examples.targets], seen=known)
