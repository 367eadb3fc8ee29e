"""What a config or a folder stands for, loaded: the data and its split; a model to serve and its catalogue."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..catalog.catalog import CATALOG_FILE, Catalog
from ..config import Config, EvaluationConfig
from ..data.columns import DataError
from ..data.dataset import Dataset, Split, load_dataset, split_leave_one_out
from ..data.no_split import split_nothing
from ..data.synthetic import make_synthetic
from ..data.time_split import split_by_time
from ..model.policy import load_model
from ..run.atomic import read_folder
from ..run.folder import RunFolder

SERVING_FILE = "serving.json"
SERVING_FORMAT = 1
DEFAULT_STAGE = "grpo"


def load_data(config: Config, catalog: Catalog | None = None, *, where: str | None = None) -> tuple[Dataset, Split]:
    """The data of a run, or the synthetic catalogue, and its split.

    catalog: of a run; the data's items are put into its order, whatever numbers they have there.
    where: what a refusal of them begins with; None: --data.

    Raises:
        DataError: data that cannot be used, or whose items are not the catalogue's.
        ValueError: a split by time of the synthetic catalogue, which has no times, or one that leaves a part nothing.
    """
    options = config.split
    by_time = options.method == "time"
    arrange = None if catalog is None else partial(catalog.arrange, where=where or f"--data {config.data}")
    if config.data and catalog is not None and not Path(config.data).is_dir():
        raise DataError(
            f"--data {config.data}: expected the data folder of the run, found none; where it was moved, --data says "
            "where it is now"
        )
    if config.data:
        dataset = load_dataset(config.data, memory_map=config.data_cache, with_times=by_time, arrange=arrange)
    elif by_time:
        raise ValueError("split.method: expected leave_one_out without --data, as made-up data has no times, got time")
    else:
        dataset = make_synthetic(config.synthetic, config.seed)
        if arrange is not None:
            dataset = dataclasses.replace(dataset, items=arrange(dataset.items))
    split: Callable[..., Split] = split_nothing if options.method == "none" else split_leave_one_out
    if by_time:
        split = partial(split_by_time, valid_share=options.valid_share, test_share=options.test_share)
    return dataset, split(
        dataset,
        max_history=options.max_history,
        rl_share=options.rl_share,
        rl_targets=options.rl_targets,
        rl_seen=options.rl_seen,
        rl_prompts=options.rl_prompts,
        seed=config.seed,
    )


@dataclass(frozen=True)
class ServingOptions:
    """How a model is to be asked, as it was trained and evaluated."""

    stage: str
    max_history: int
    """Items of history in a prompt, the most recent ones."""
    evaluation: EvaluationConfig
    """Beam width, batch size, normalizer, and whether items of the history are left out."""

    def asked_for(self, top: int, *, exclude_history: bool, batch_size: int | None = None) -> ServingOptions:
        """The same for a request of `top` items: the search is never narrower than that or the evaluation's.

        exclude_history: as it is in the evaluation where that leaves items of the history out anyway.
        batch_size: histories of one search; None: as in the evaluation.
        """
        evaluation = dataclasses.replace(
            self.evaluation,
            beam_width=max(self.evaluation.beam_width, top),
            batch_size=batch_size or self.evaluation.batch_size,
            exclude_history="yes" if exclude_history else self.evaluation.exclude_history,
        )
        return dataclasses.replace(self, evaluation=evaluation)

    def to_json(self) -> str:
        values = {
            "format": SERVING_FORMAT,
            "stage": self.stage,
            "max_history": self.max_history,
            "beam_width": self.evaluation.beam_width,
            "normalizer": self.evaluation.normalizer,
            "exclude_history": self.evaluation.excludes_history,
            "counts_weight": self.evaluation.counts_weight,
        }
        return json.dumps(values, indent=2) + "\n"


@dataclass(frozen=True)
class Serving:
    """A model in eval mode with its catalogue, on the GPU where there is one."""

    model: nn.Module
    catalog: Catalog
    options: ServingOptions
    among: np.ndarray | None = None
    """int64, ascending: rows of the items that may be recommended; None: all."""


def load_serving(folder: Path, stage: str | None = None) -> Serving:
    """The best model of a run's stage, or the model of a folder that `tawin export` wrote, and its catalogue.

    stage: "sft" or "grpo"; None: grpo, or the one that was exported.

    Raises:
        ValueError: a folder that is neither, or a stage that has no model yet or is not the one that was exported.
    """
    if (folder / SERVING_FILE).exists():
        options = _read_options(folder / SERVING_FILE)
        if stage not in (None, options.stage):
            raise ValueError(f"--stage {stage}: expected {options.stage}, the stage that {folder} was exported from")
        model_folder = catalog_folder = folder
    else:
        run = RunFolder.open(folder)
        options = ServingOptions(stage or DEFAULT_STAGE, run.config.split.max_history, evaluation_of(run))
        model_folder, catalog_folder = best_model(run, options.stage), run.catalog
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = read_folder(model_folder, load_model).to(device).eval()  # training may replace it meanwhile
    return Serving(model, Catalog.load(catalog_folder).to(device), options)


def evaluation_of(run: RunFolder) -> EvaluationConfig:
    """A run's options of evaluation, an "auto" as training decided it."""
    evaluation = run.config.evaluation
    if evaluation.exclude_history != "auto":
        return evaluation
    decided = run.results.get("config", {}).get("evaluation", {}).get("exclude_history", "no")
    return dataclasses.replace(evaluation, exclude_history=decided)


def catalog_of_model(name_or_path: str) -> Path | None:
    """The folder of the catalogue that a model was trained with: its run's, or its own if it was exported."""
    folder = Path(name_or_path)
    places = (folder, folder.absolute().parents[1] / "catalog") if folder.is_dir() else ()
    return next((place for place in places if (place / CATALOG_FILE).exists()), None)


def best_model(run: RunFolder, stage: str) -> Path:
    """The folder of a stage's best model; ValueError where there is none yet."""
    folder = run.checkpoints / stage
    if not (folder / "config.json").exists():
        raise ValueError(f"{run.path}: expected a finished {stage} stage (checkpoints/{stage}), found none yet")
    return folder


def _read_options(path: Path) -> ServingOptions:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != SERVING_FORMAT:
            raise ValueError("another format")
        stage, max_history = values.pop("stage"), values.pop("max_history")
        return ServingOptions(stage, max_history, dataclasses.replace(EvaluationConfig(), **values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected the file that `tawin export` writes, cannot read it: {error}") from None
