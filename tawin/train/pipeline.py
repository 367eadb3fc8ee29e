"""The main job's stages in their order: baselines, SFT, its evaluation, GRPO with TAWin, its evaluation, the report.

Read `train` from top to bottom. Each part is skipped where a resumed run has it already.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from rich.table import Table
from torch import nn

from ..catalog.catalog import Catalog
from ..catalog.item_vectors import load_vectors
from ..config import KS, Config
from ..data.dataset import Examples
from ..data.ragged import Ragged
from ..evaluate.baselines import COUNTS, LABELS, build_baselines
from ..evaluate.ranking import decided, ranks_of, repeat_share, sampled
from ..metrics import ranking_metrics
from ..model.dropout import add_dropout
from ..model.packing import checkpoint_activations
from ..model.policy import add_lora, load_model
from ..report.page import write_report
from ..run.folder import RanksByUser, RunFolder
from ..run.processes import Processes
from .checkpoint import find_state
from .grpo import train_grpo
from .job import Job, describe, place_unseen_items
from .sft import train_sft


def train(job: Job, config: Config, run: RunFolder, accelerator: Accelerator) -> None:
    """Run the stages that are not done yet, evaluate each best model, write results and report."""
    processes = Processes.of(accelerator)
    asked, config = config.evaluation.exclude_history, decided(config, job.split)
    if processes.is_first and asked != config.evaluation.exclude_history:
        print(f"evaluation.exclude_history: {config.evaluation.exclude_history} ({_repeats(job)})")
    catalog = job.catalog.to(accelerator.device)
    best = job.dataset.best_recall
    run.add_results(
        config=dataclasses.asdict(config),
        dataset=describe(job),
        best_achievable={str(k): value for k, value in best.items()} if best else None,
        **({} if job.extension is None else {"extended": {"from": config.model, **job.extension.counts()}}),
    )

    if processes.is_first and "baselines" not in run.results:
        _evaluate_baselines(job, config, run)

    found = processes.ask_first(lambda: find_state(run.checkpoints, run.config_digest))
    progress = None if found is None else found[1]
    if progress is None or (progress.stage == "sft" and not progress.finished):
        model = trainable(job.model, catalog, config)
        progress = train_sft(accelerator, model, job.tokenizer, catalog, job.split, config, run)
        # GRPO loads its own model: this one and its optimizer make room on the GPU.
        accelerator.free_memory()
        if accelerator.distributed_type != DistributedType.FSDP:  # which holds a share of it that it will not move
            model.to("cpu")
    if progress.stage == "sft":
        _add_seconds(run, sft=progress.seconds)
        place_unseen_items(job, config, run.checkpoints / "sft", processes)
    _evaluate_stage("sft", job, catalog, config, run, processes)

    if progress.stage == "sft" or not progress.finished:
        model, reference = policy_and_reference(run.checkpoints / "sft", catalog, config)
        progress = train_grpo(accelerator, model, reference, job.tokenizer, catalog, job.split, config, run)
    _add_seconds(run, grpo=progress.seconds)
    if processes.ask_first(lambda: "grpo" not in run.results):
        place_unseen_items(job, config, run.checkpoints / "grpo", processes)
    # Where no step made it better, the best model is the SFT start, which has its figures.
    figures = run.results.get("sft") if processes.is_first and progress.best_step == 0 else None
    _evaluate_stage("grpo", job, catalog, config, run, processes, known=figures)

    if processes.is_first:
        report = write_report([run.path], run.path)
        print_results(run)
        print(f"run: {run.path}   report: {report}")


def policy_and_reference(start: Path, catalog: Catalog, config: Config) -> tuple[nn.Module, nn.Module | None]:
    """What GRPO begins with; no reference where there is no KL term, or adapters can be switched off for it."""
    model = trainable(load_model(start), catalog, config)
    return model, load_model(start) if config.needs_reference else None


def trainable(model: nn.Module, catalog: Catalog, config: Config) -> nn.Module:
    """The model with what a config adds for training: adapters, dropout, recomputed activations.

    Adapters are drawn from the seed alone: loading a model may use up random numbers too.
    """
    torch.manual_seed(config.seed)
    if config.policy.lora_rank > 0:
        new = torch.unique(catalog.token_ids) if config.catalog.item_tokens != "title" else torch.tensor([])
        model = add_lora(model, config.policy, new[new >= 0].tolist())
    if config.policy.hidden_dropout > 0:
        add_dropout(model, config.policy.hidden_dropout)
    if config.policy.checkpoint_activations:
        checkpoint_activations(model)
    return model


def _repeats(job: Job) -> str:
    return f"of the training interactions {100 * repeat_share(job.split.training):.2f} % repeat an item"


def _evaluate_baselines(job: Job, config: Config, run: RunFolder) -> None:
    """Valid and test figures of what needs no training, for the users that the model is evaluated on."""
    started = time.monotonic()
    items, file = job.catalog.num_items, config.catalog.vectors
    vectors = None if file is None else load_vectors(file, items)
    baselines = build_baselines(Ragged.of(job.split.training), items, vectors)
    figures: dict[str, dict[str, Any]] = {name: {} for name in baselines.scores}
    for part, examples in _held_out(job, config):
        for name in baselines.scores:
            ranks = baselines.ranks(name, examples, exclude_history=config.evaluation.excludes_history)
            figures[name][part] = ranking_metrics(ranks)
    _add_seconds(run, {"baselines": figures}, baselines=time.monotonic() - started)


def _held_out(job: Job, config: Config) -> list[tuple[str, Examples]]:
    """valid and test, as many of their users as are evaluated; nothing where everything is for training."""
    parts = [(part, getattr(job.split, part)) for part in ("valid", "test")]
    return [
        (part, sampled(examples, config.evaluation.test_users, config.seed)) for part, examples in parts if examples
    ]


def _evaluate_stage(
    name: str,
    job: Job,
    catalog: Catalog,
    config: Config,
    run: RunFolder,
    processes: Processes,
    *,
    known: dict[str, Any] | None = None,
) -> None:
    """Valid and test figures of a stage's best model, once; known: the SFT start's on the first process, where
    that is the best model."""
    if known is not None and name not in run.results:
        run.copy_ranks("sft", name)
        run.add_results(**{name: known})
    known = processes.ask_first(lambda: run.results.get(name))
    if known is not None:
        run.tracking.add_results(name, known)  # a crash may have come between the two
        return
    started = time.monotonic()
    model = load_model(run.checkpoints / name).to(processes.device)
    figures, users, ranks = {}, {}, {}
    for part, examples in _held_out(job, config):
        found = ranks_of(
            model,
            catalog,
            examples,
            config.evaluation,
            description=f"{name} {part}",
            progress=processes.is_first,
            processes=processes,
        )
        figures[part], users[part] = ranking_metrics(found), len(examples)
        ranks[part] = RanksByUser(examples.user_ids, found)
    run.save_ranks(name, ranks)  # before the results: where they stand, these do too
    _add_seconds(run, {name: figures, "users": users}, **{f"{name}_evaluation": time.monotonic() - started})
    run.tracking.add_results(name, figures)


def _add_seconds(run: RunFolder, parts: dict[str, Any] | None = None, **seconds: float) -> None:
    """Into the results, at once with other parts of them."""
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    run.add_results(**(parts or {}), seconds={**run.results.get("seconds", {}), **rounded})


def print_results(run: RunFolder) -> None:
    """The results table of a run, on the terminal."""
    results = run.results
    if run.config.split.method == "none":
        print("no figures: everything was for training (split.method none)")
        return
    table = Table(title=f"{results['dataset']['name']}, test: Recall and NDCG")
    table.add_column("stage")
    for k in KS:
        table.add_column(f"R@{k}", justify="right")
    for k in KS[1:]:
        table.add_column(f"N@{k}", justify="right")
    baselines = {LABELS[name]: figures for name, figures in results.get("baselines", {}).items()}
    for rows in (baselines, {stage: results[stage] for stage in ("sft", "grpo") if stage in results}):
        for name, figures in rows.items():
            test = figures["test"]
            recalls = [f"{test[f'recall@{k}']:.4f}" for k in KS]
            table.add_row(name, *recalls, *(f"{test[f'ndcg@{k}']:.4f}" for k in KS[1:]))
        table.add_section()
    best = results.get("best_achievable")
    if best:
        table.add_row("best achievable", *(f"{best[str(k)]:.4f}" for k in KS), *("" for _ in KS[1:]))
    Console().print(table)
    if behind := behind_counts(results, run.config.evaluation.select):
        print(behind)


def behind_counts(results: dict[str, Any], metric: str) -> str:
    """What to say of a run whose last model is below counts on valid, by the metric that chose it; else ""."""
    ends = [results[stage]["valid"][metric] for stage in ("sft", "grpo") if results.get(stage)]
    counts = results.get("baselines", {}).get(COUNTS, {}).get("valid", {}).get(metric)
    if not ends or counts is None or ends[-1] >= counts:
        return ""
    return (
        f"note: the model ends below counts, which need no training (valid {metric} {ends[-1]:.4f}, {counts:.4f}). "
        "Try --catalog.item-tokens item and more sft.epochs; docs/TUNING.md, 'Below the baselines', has the rest"
    )
