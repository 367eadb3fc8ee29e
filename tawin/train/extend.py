"""A run goes on with a newer log: its items keep their tokens, new ones get some, its model is trained on.

Called by `tawin extend`. What is done with the items is in `catalog.extension` and `catalog.token_vectors`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..catalog.catalog import Catalog
from ..config import Config
from ..model.cross_entropy import sampled_negatives
from ..run.folder import RunFolder
from ..serve.load import DEFAULT_STAGE, best_model


def extended_config(run: RunFolder, data: str | Path, stage: str | None = None) -> Config:
    """The run's own options, for a new run on a newer log that begins with the run's best model.

    data: the newer log's folder, with all that is to be trained on: users' earlier interactions too.
    stage: whose model, "sft" or "grpo"; None: grpo.

    Raises:
        ValueError: the run has no model of the stage yet, or was trained on made-up data.
    """
    config = run.config
    if config.data is None:
        raise ValueError(f"{run.path}: expected a run on data of its own, got one on made-up data")
    model = best_model(run, stage or DEFAULT_STAGE).absolute()
    # Whether a step takes the whole softmax is decided by the size of the catalogue for small models from scratch.
    negatives = sampled_negatives(Catalog.load(run.catalog), config)
    return replace(
        config,
        data=str(data),
        model=str(model),
        catalog=replace(config.catalog, extend=True),
        sft=replace(config.sft, negatives=negatives),
    )
