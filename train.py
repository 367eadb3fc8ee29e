"""The main job: data -> catalogue -> SFT -> GRPO with TAWin -> evaluation -> report, in one run folder.

    python train.py                                          a synthetic catalogue, under 3 minutes on 2 CPU cores
    python train.py --preset cpu-small --data FOLDER         real interactions
    python train.py --out RUN --resume                       go on with a run that was stopped

Every option: python train.py --help
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tawin.catalog import Catalog, build_catalog, make_tokenizer
from tawin.checkpoint import read_progress
from tawin.cli import TrainingOptions, parse_training, print_results
from tawin.config import Config
from tawin.data import Dataset, Split, load_dataset, split_leave_one_out, training_sequences
from tawin.evaluate import evaluate, sampled
from tawin.optimization import make_accelerator
from tawin.policy import add_lora, build_model, load_model, load_tokenizer
from tawin.report import write_report
from tawin.run_folder import RunFolder
from tawin.semantic_ids import build_semantic_ids
from tawin.synthetic import make_synthetic
from tawin.trainer import train_grpo, train_sft


@dataclass(frozen=True)
class Job:
    """All that training needs, checked, before anything is written."""

    dataset: Dataset
    split: Split
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog
    model: nn.Module


def main(arguments: Sequence[str]) -> None:
    """The whole job. `arguments`: the command line without the program's name."""
    options = parse_training(arguments)
    transformers_logging.disable_progress_bar()
    try:
        run = RunFolder.resume(options.out, options.config) if options.resume else None
        if run is None:
            RunFolder.check_new(options.out)
        job = prepare(options, run)
        if run is None:
            run = RunFolder.create(options.out, options.config)
        job.catalog.save(run.catalog)
        job.tokenizer.save_pretrained(run.catalog)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    train(job, options.config, run)


def prepare(options: TrainingOptions, run: RunFolder | None) -> Job:
    """Load or make the data, the catalogue and the model; a resumed run takes its own catalogue."""
    config = options.config
    dataset = load_dataset(config.data) if config.data else make_synthetic(config.synthetic, config.seed)
    split = split_leave_one_out(
        dataset, max_history=config.split.max_history, rl_share=config.split.rl_share, seed=config.seed
    )
    if run is not None and (run.catalog / "catalog.json").exists():
        tokenizer, catalog = load_tokenizer(str(run.catalog)), Catalog.load(run.catalog)
    else:
        tokenizer, catalog = make_catalog(dataset, config)
    if config.model:
        model = load_model(config.model, tokens=len(tokenizer), seed=config.seed)
    else:
        model = build_model(config.policy, tokenizer, config.seed)
    parameters = sum(p.numel() for p in model.parameters())
    trie = catalog.trie
    print(
        f"{dataset.name}: {len(dataset.sequences):,} users ({dataset.users_left_out:,} with fewer than three items "
        f"left out), {catalog.num_items:,} items, {trie.num_nodes:,} trie nodes, depth {trie.max_depth}; "
        f"model: {parameters:,} parameters"
    )
    return Job(dataset, split, tokenizer, catalog, model)


def make_catalog(dataset: Dataset, config: Config) -> tuple[PreTrainedTokenizerBase, Catalog]:
    """Items as tokens of the model's tokenizer, or of a small one made for them."""
    training = training_sequences(dataset)
    semantic_ids = None
    if config.catalog.item_tokens == "semantic_id":
        semantic_ids = build_semantic_ids(dataset, config.catalog, training_sequences=training, seed=config.seed)
    tokenizer = load_tokenizer(config.model) if config.model else make_tokenizer(dataset, config.catalog, semantic_ids)
    catalog = build_catalog(
        dataset, tokenizer, config.catalog, training_sequences=training, seed=config.seed, semantic_ids=semantic_ids
    )
    return tokenizer, catalog


def train(job: Job, config: Config, run: RunFolder) -> None:
    """Run the stages that are not done yet, evaluate each best model, write results and report."""
    accelerator = make_accelerator()
    catalog = job.catalog.to(accelerator.device)
    best = job.dataset.best_recall
    run.add_results(
        config=dataclasses.asdict(config),
        dataset=_describe(job),
        best_achievable={str(k): value for k, value in best.items()} if best else None,
    )

    progress = read_progress(run.checkpoints / "state")
    if progress is None or (progress.stage == "sft" and not progress.finished):
        torch.manual_seed(config.seed)
        model = _trainable(job.model, job, config)
        stage = train_sft(accelerator, model, job.tokenizer, catalog, job.split, config, run)
        _add_seconds(run, sft=stage.seconds)
    _evaluate_stage("sft", job, catalog, config, run, accelerator.device)

    progress = read_progress(run.checkpoints / "state")
    if progress is None or progress.stage == "sft" or not progress.finished:
        torch.manual_seed(config.seed)
        start = run.checkpoints / "sft"
        model = _trainable(load_model(start), job, config)
        reference = load_model(start) if config.grpo.beta > 0 and config.policy.lora_rank == 0 else None
        stage = train_grpo(accelerator, model, reference, job.tokenizer, catalog, job.split, config, run)
        _add_seconds(run, grpo=stage.seconds)
    _evaluate_stage("grpo", job, catalog, config, run, accelerator.device)

    report = write_report([run.path], run.path)
    print_results(run)
    print(f"run: {run.path}   report: {report}")


def _trainable(model: nn.Module, job: Job, config: Config) -> nn.Module:
    if config.policy.lora_rank == 0:
        return model
    used = torch.unique(job.catalog.token_ids)
    return add_lora(model, config.policy, used[used >= 0].tolist())


def _evaluate_stage(
    name: str, job: Job, catalog: Catalog, config: Config, run: RunFolder, device: torch.device
) -> None:
    """Valid and test figures of a stage's best model, once."""
    if name in run.results:
        return
    started = time.monotonic()
    model = load_model(run.checkpoints / name).to(device)
    figures, users = {}, {}
    for part in ("valid", "test"):
        examples = sampled(getattr(job.split, part), config.evaluation.test_users, config.seed)
        figures[part] = evaluate(
            model, catalog, examples, config.evaluation, description=f"{name} {part}", progress=True
        )
        users[part] = len(examples)
    run.add_results(**{name: figures}, users=users)
    _add_seconds(run, **{f"{name}_evaluation": time.monotonic() - started})


def _add_seconds(run: RunFolder, **seconds: float) -> None:
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    run.add_results(seconds={**run.results.get("seconds", {}), **rounded})


def _describe(job: Job) -> dict[str, Any]:
    """What results.json says of the data."""
    test = job.split.test
    repeats = [target in history for target, history in zip(test.targets, test.histories, strict=True)]
    return {
        "name": job.dataset.name,
        "users": len(job.dataset.sequences),
        "users_left_out": job.dataset.users_left_out,
        "items": job.catalog.num_items,
        "interactions": int(sum(len(sequence) for sequence in job.dataset.sequences)),
        "repeat_share": round(float(np.mean(repeats)), 4),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
