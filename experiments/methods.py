"""What a cell does, by its row's method: train or compute, then a record of it.

sft             the SFT start itself
grpo            GRPO from the start, the trainer's own loop
sdpo            S-DPO from the start
sasrec, gru4rec sequential recommenders on all training items
popularity, counts, item_knn
                what needs no training (tawin.evaluate.baselines), the same for every seed
theory.NAME     experiments.theory.NAME.run
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.measure import cpu_model
from tawin import metrics
from tawin.catalog.catalog import Catalog
from tawin.config import Config
from tawin.data.dataset import Examples, Split, training_sequences
from tawin.data.ragged import Ragged
from tawin.data.transitions import count_transitions
from tawin.evaluate.baselines import COUNTS, ITEM_KNN, POPULARITY, build_baselines
from tawin.evaluate.exact import exact_metrics
from tawin.evaluate.ranking import decided, evaluate, recommend, sampled, target_ranks
from tawin.model.policy import load_model
from tawin.run.folder import RunFolder
from tawin.train.grpo import train_grpo
from tawin.train.pipeline import policy_and_reference, trainable

from .baselines import SequenceModelOptions, fit, ranks
from .plan import TRAINED, Cell
from .sdpo import SDPOOptions, train_sdpo
from .store import PARTS, Record
from .theory.options import read
from .workspace import Workspace, accelerator, catalog_of, dataset_and_split, open_or_create

TRAIN_PROMPTS = 2000  # RL prompts whose recall a record tells
RECALLS = ("recall@1", "recall@3", "recall@5")


@dataclass(frozen=True)
class Outcome:
    """What a cell found; see store.Record."""

    values: dict[str, float]
    settings: dict[str, Any]
    ranks: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)


def run_cell(cell: Cell, workspace: Workspace) -> Record:
    """Run a cell, or go on with it where it was stopped."""
    started = time.monotonic()
    method = cell.row.method
    outcome = _theory(cell) if method.startswith("theory.") else METHODS[method](cell, workspace)
    return Record(
        table=cell.table,
        data=cell.data,
        row=cell.row.name,
        seed=cell.seed,
        settings=outcome.settings,
        values=outcome.values,
        ranks=outcome.ranks,
        series=outcome.series,
        seconds=round(time.monotonic() - started, 2),
        machine=machine(),
        version=version(),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def check(cell: Cell, workspace: Workspace) -> None:
    """Refuse, by table and row, a method or options that cannot be run; ValueError."""
    method, where = cell.row.method, f"{cell.table}: {cell.row.name}"
    if method not in METHODS and not method.startswith("theory."):
        raise ValueError(f"{where}: expected a method among {sorted(METHODS)} or theory.NAME, got {method!r}")
    if method in TRAINED:
        config = workspace.config(cell)
    try:
        if method == "sdpo":
            sdpo_options(cell, config)
        elif method in ("sasrec", "gru4rec"):
            _sequence_model_options(cell)
        elif method.startswith("theory."):
            read(importlib.import_module(f"{__package__}.{method}").Options, cell.row.options)
        if cell.options.get("exact", {"users": 1}).keys() != {"users"}:
            raise ValueError(f"exact: expected {{users: N}}, got {cell.options['exact']}")
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _sft(cell: Cell, workspace: Workspace) -> Outcome:
    config = workspace.config(cell)
    start = workspace.start(config, cell.data)
    _, catalog = catalog_of(start)
    _, split = dataset_and_split(config)
    return _evaluated(start, "sft", catalog, split, decided(config, split), cell)


def _from_start(cell: Cell, workspace: Workspace) -> Outcome:
    """GRPO or S-DPO, in the cell's run folder; where another table has the same cell under way, after that."""
    config, stage = workspace.config(cell), cell.row.method
    start = workspace.start(config, cell.data)
    tokenizer, catalog = catalog_of(start)
    _, split = dataset_and_split(config)
    sft = start.checkpoints / "sft"
    with workspace.lock(workspace.cell_folder(cell), wait=True):
        run = open_or_create(workspace.cell_folder(cell), config)
        config = decided(config, split)
        if stage == "grpo":
            model, reference = policy_and_reference(sft, catalog, config)
            train_grpo(accelerator(), model, reference, tokenizer, catalog, split, config, run)
        else:
            model, options = trainable(load_model(sft), catalog, config), sdpo_options(cell, config)
            train_sdpo(accelerator(), model, load_model(sft), tokenizer, catalog, split, config, options, run)
        accelerator().free_memory()
        outcome = _evaluated(run, stage, catalog, split, config, cell)
        if not cell.options.get("probes", True):
            return outcome
        # A checkpoint chosen on valid may be the start: only the last weights tell what RL did to its own prompts.
        ends = _recalls("train", load_model(sft), catalog, split.rl, config, "at the start")
        for part, examples in (("train", split.rl), ("valid", split.valid), ("test", split.test)):
            ends |= _recalls(part, model, catalog, examples, config, "at the end")
        return replace(outcome, values=outcome.values | ends)


def sdpo_options(cell: Cell, config: Config) -> SDPOOptions:
    """A cell's options of S-DPO; it has GRPO's steps, batches and evaluations where the row says nothing else."""
    same = {name: getattr(config.grpo, name) for name in ("steps", "batch_size", "evaluate_every")}
    return SDPOOptions(**{**same, **cell.options.get("sdpo", {})})


def _sequence_model_options(cell: Cell) -> SequenceModelOptions:
    return SequenceModelOptions(**{name: value for name, value in cell.options.items() if name != "evaluation"})


def _sequence_model(cell: Cell, workspace: Workspace) -> Outcome:
    kind = cell.row.method
    options = _sequence_model_options(cell)
    config = workspace.config(replace(cell, options={"evaluation": cell.options.get("evaluation", {})}))
    config = replace(config, split=replace(config.split, max_history=options.max_history))
    dataset, split = dataset_and_split(config)
    evaluation = decided(config, split).evaluation
    model = fit(
        kind,  # type: ignore[arg-type]
        training_sequences(dataset),
        len(dataset.items),
        options,
        seed=cell.seed,
        valid=split.valid,
        exclude_history=evaluation.excludes_history,
        device=accelerator().device,
    )
    found = {
        part: ranks(
            model,
            sampled(getattr(split, part), evaluation.test_users, 0),
            exclude_history=evaluation.excludes_history,
        )
        for part in PARTS
    }
    settings = {kind: dataclasses.asdict(options), "evaluation": dataclasses.asdict(evaluation), "seed": cell.seed}
    return Outcome(_values(found), settings, found)


def _untrained(cell: Cell, workspace: Workspace) -> Outcome:
    config = workspace.config(replace(cell, options={"evaluation": cell.options.get("evaluation", {})}))
    dataset, split = dataset_and_split(config)
    evaluation = decided(config, split).evaluation
    baselines = build_baselines(training_sequences(dataset), len(dataset.items))
    found: dict[str, np.ndarray] = {
        part: baselines.ranks(
            cell.row.method,
            sampled(getattr(split, part), evaluation.test_users, 0),
            exclude_history=evaluation.excludes_history,
        )
        for part in PARTS
    }
    return Outcome(_values(found), {"evaluation": dataclasses.asdict(evaluation), "seed": cell.seed}, found)


def _theory(cell: Cell) -> Outcome:
    module = importlib.import_module(f"{__package__}.{cell.row.method}")
    values, series = module.run(cell.row.options, cell.seed)
    return Outcome(values, dict(cell.row.options), series=series)


METHODS: dict[str, Callable[[Cell, Workspace], Outcome]] = {
    "sft": _sft,
    "grpo": _from_start,
    "sdpo": _from_start,
    "sasrec": _sequence_model,
    "gru4rec": _sequence_model,
    **dict.fromkeys((POPULARITY, COUNTS, ITEM_KNN), _untrained),
}


def _evaluated(run: RunFolder, stage: str, catalog: Catalog, split: Split, config: Config, cell: Cell) -> Outcome:
    """Ranks of the stage's best model on valid and test, its curves, and where `exact` asks for them exact figures."""
    model = load_model(run.checkpoints / stage).to(accelerator().device)
    found = {}
    for part in PARTS:
        examples: Examples = sampled(getattr(split, part), config.evaluation.test_users, 0)
        recommended = recommend(
            model, catalog, examples.histories, config.evaluation, seen=examples.seen, description=part
        )
        found[part] = target_ranks(recommended, examples.targets).astype(np.int32)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["stage"] == stage]
    values, series = _values(found), _curves(lines)
    if cell.options.get("probes", True):
        values |= _recalls("train", model, catalog, split.rl, config)
    values |= _recalls_with_counts(model, catalog, split, config)
    if "exact" in cell.options:
        values |= _exact(model, catalog, split, config, **cell.options["exact"])
    settings = dataclasses.asdict(config)
    if stage == "sdpo":
        settings["sdpo"] = dataclasses.asdict(sdpo_options(cell, config))
    if "exact" in cell.options:
        settings["exact"] = cell.options["exact"]
    return Outcome(values, settings, found, series)


def _recalls(
    part: str, model: nn.Module, catalog: Catalog, examples: Examples, config: Config, when: str = ""
) -> dict[str, float]:
    """Recall of the examples: "train recall@3 at the end". Of "train", the RL prompts, at most TRAIN_PROMPTS.

    Those are ranked by the model alone: counts of the training data hold their targets.
    """
    if part == "train":
        examples = examples.sample(TRAIN_PROMPTS, 0)
        config = replace(config, evaluation=replace(config.evaluation, counts_weight=0.0))
    else:
        examples = sampled(examples, config.evaluation.test_users, 0)
    if len(examples) == 0:
        return {}
    figures = evaluate(model.to(accelerator().device), catalog, examples, config.evaluation, description=part)
    return {f"{part} {name} {when}".rstrip(): figures[name] for name in RECALLS}


def _recalls_with_counts(model: nn.Module, catalog: Catalog, split: Split, config: Config) -> dict[str, float]:
    """Where each item is one token and the model is ranked alone: "test recall@3 with counts" and their like.

    The model as `evaluation.counts_weight` None would rank it, so that a table can show both.
    """
    if config.catalog.item_tokens != "item" or config.evaluation.counts_weight != 0:
        return {}
    counted = replace(catalog, transitions=count_transitions(Ragged.of(split.training), catalog.num_items))
    mixed = replace(config, evaluation=replace(config.evaluation, counts_weight=None))
    found: dict[str, float] = {}
    for part in PARTS:
        found |= _recalls(part, model, counted, getattr(split, part), mixed, "with counts")
    return found


def _exact(model: nn.Module, catalog: Catalog, split: Split, config: Config, *, users: int) -> dict[str, float]:
    """Exact figures of some users, by the score of every item: "test recall@3 exact", and with two positives a user.

    The latter are the valid and the test item, both unseen in training, after the history of the valid one.
    """
    test = sampled(split.test, users, 0)
    both = sampled(replace(split.valid, also=Ragged.of(split.test.targets[:, None])), users, 0)
    found = {}
    for name, examples in (("exact", test), ("exact, 2 positives", both)):
        figures = exact_metrics(model, catalog, examples, normalizer=config.evaluation.normalizer)
        found |= {f"test {figure} {name}": value for figure, value in figures.items()}
    return found


def _values(found: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        f"{part} {name}": float(value)
        for part, ranks_of_part in found.items()
        for name, value in metrics.ranking_metrics(ranks_of_part).items()
        if not name.startswith("wpauc")  # recall's, with one target a user
    }


def _curves(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What was logged, a list a figure: "valid recall@3" with "valid step", "hit_share" with "step", and so on."""
    curves: dict[str, list[float]] = {}
    for line in lines:
        if "valid" in line:
            curves.setdefault("valid step", []).append(float(line["step"]))
            for name, value in line["valid"].items():
                curves.setdefault(f"valid {name}", []).append(value)
        else:
            for name, value in line.items():
                if isinstance(value, int | float):
                    curves.setdefault(name, []).append(float(value))
    return curves


def machine() -> str:
    """The device that ran it, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_model()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def version() -> str:
    """The commit that ran it, "+" where the tree had changes; "unknown" outside a git checkout."""
    folder = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")
