"""What a config or a run folder stands for, loaded: the data and its split; a stage's model and its catalogue."""

from __future__ import annotations

import torch
from torch import nn

from .catalog import Catalog
from .config import Config
from .data import Dataset, Split, load_dataset, split_leave_one_out
from .policy import load_model
from .run_folder import RunFolder
from .synthetic import make_synthetic


def load_data(config: Config) -> tuple[Dataset, Split]:
    """The data of a run, or the synthetic catalogue, and its split."""
    if config.data:
        dataset = load_dataset(config.data, memory_map=config.data_cache)
    else:
        dataset = make_synthetic(config.synthetic, config.seed)
    return dataset, split_leave_one_out(
        dataset,
        max_history=config.split.max_history,
        rl_share=config.split.rl_share,
        rl_targets=config.split.rl_targets,
        seed=config.seed,
    )


def load_run(run: RunFolder, stage: str) -> tuple[nn.Module, Catalog]:
    """The best model of a stage in eval mode and the catalogue, on the GPU where there is one.

    Raises:
        ValueError: the stage has no model yet.
    """
    folder = run.checkpoints / stage
    if not (folder / "config.json").exists():
        raise ValueError(f"{run.path}: expected a finished {stage} stage (checkpoints/{stage}), found none yet")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(folder).to(device).eval(), Catalog.load(run.catalog).to(device)
