"""A run folder with models and a catalogue in it, made without training: what the commands on finished runs read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from tawin.catalog.catalog import build_catalog, make_tokenizer
from tawin.catalog.semantic_ids import build_semantic_ids
from tawin.config import CatalogConfig, Config, EvaluationConfig, PolicyConfig, SplitConfig, SyntheticConfig
from tawin.data.dataset import training_sequences
from tawin.data.digest import Origin, digest_of
from tawin.model.policy import build_model
from tawin.run.folder import RunFolder
from tawin.serve.load import load_data
from tawin.train.checkpoint import save_model

SMALL = Config(
    split=SplitConfig(max_history=4),
    synthetic=SyntheticConfig(num_users=60, num_items=40, num_clusters=5),
    catalog=CatalogConfig(levels=2, codes=6),  # 40 items on 36 ids: some share one and have a token more
    policy=PolicyConfig(hidden_size=16, layers=2, heads=2, intermediate_size=24),
    evaluation=EvaluationConfig(beam_width=12, batch_size=4, exclude_history="no"),
)


def make_run(folder: Path, config: Config = SMALL) -> RunFolder:
    """A run of `config` whose models were never trained; their weights are scaled up: strong preferences, no ties."""
    dataset, _ = load_data(config)
    # Ids of their own, so that no test takes an id for a row.
    ids = dataset.items.item_ids * 3 + 100
    dataset = dataclasses.replace(dataset, items=dataclasses.replace(dataset.items, item_ids=ids))
    training = training_sequences(dataset)
    codes = None
    if config.catalog.item_tokens == "semantic_id":
        codes = build_semantic_ids(dataset, config.catalog, training_sequences=training, seed=config.seed)
    tokenizer = make_tokenizer(dataset, config.catalog, codes)
    catalog = build_catalog(
        dataset,
        tokenizer,
        config.catalog,
        training_sequences=training,
        semantic_ids=codes,
        prompt=config.prompt,
    )
    run = RunFolder.create(folder, config)
    for seed, stage in enumerate(("sft", "grpo")):
        model = build_model(config.policy, tokenizer, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)
        save_model(model, tokenizer, run.checkpoints / stage)
    catalog.save(run.catalog)
    tokenizer.save_pretrained(run.catalog)
    Origin(None, digest_of(dataset)).save(run.catalog)
    return run
