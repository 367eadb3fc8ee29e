"""The main job: data -> catalogue -> SFT -> GRPO with TAWin -> evaluation -> report, in one run folder.

    python train.py                                          a synthetic catalogue, under 3 minutes on 2 CPU cores
    python train.py --preset cpu-small --data FOLDER         real interactions
    python train.py --out RUN --resume                       go on with a run that was stopped, killed or out of disk
    python train.py --dry-run                                what it would do and take
    torchrun --nproc-per-node 8 train.py ...                 on several GPUs, see README.md

Every option: python train.py --help
"""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType, PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tawin.catalog import Catalog, build_catalog, make_tokenizer
from tawin.causal_attention import require_attention, require_model_takes
from tawin.checkpoint import find_state
from tawin.cli import TrainingOptions, load_data, parse_training, print_results
from tawin.config import Config, OptimizerConfig
from tawin.data import Dataset, Split
from tawin.distributed import Processes, is_lost_process, make_accelerator
from tawin.dropout import add_dropout
from tawin.dry_run import print_plan
from tawin.durable import WriteError, replace_folder
from tawin.evaluate import evaluate, sampled
from tawin.grpo import train_grpo
from tawin.guards import TrainingStoppedError
from tawin.optimization import require_optimizer
from tawin.packing import checkpoint_activations
from tawin.policy import add_lora, build_model, load_model, load_tokenizer
from tawin.ragged import Ragged
from tawin.report import write_report
from tawin.run_folder import RunFolder, RunFolderError
from tawin.run_lock import lock_run
from tawin.semantic_ids import build_semantic_ids, given_ids
from tawin.sft import train_sft
from tawin.states import states
from tawin.stopping import Stopped, stop_on_signals
from tawin.tracking import require_tracker


@dataclass(frozen=True)
class Job:
    """All that training needs, checked, before anything is written."""

    dataset: Dataset
    split: Split
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog
    model: nn.Module


def main(arguments: Sequence[str]) -> None:
    """The whole job, or one process's part of it. `arguments`: the command line without the program's name.

    Ends with status 1 and a message where something is wrong, a full disk or the death of another process among it;
    with 128 and the signal's number where SIGTERM or Ctrl-C asked for the end in training, which is saved then.
    """
    transformers_logging.disable_progress_bar()
    with ExitStack() as held:
        try:
            accelerator = make_accelerator()
            processes = Processes.of(accelerator)
            options = processes.ask_first(lambda: parse_training(arguments))
            set_deterministic(options.config.deterministic)
            if options.dry_run:
                return dry_run(options, accelerator)
            run, job = processes.in_turn(lambda: open_run(options, accelerator, held))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        with ending_with_a_message(run, processes), stop_on_signals(), run.tracked(options.config) as run:
            train(job, options.config, run, accelerator)


@contextmanager
def ending_with_a_message(run: RunFolder, processes: Processes) -> Iterator[None]:
    """What can be expected to end training ends it with a message and a status, and no traceback."""
    go_on = f"go on with: python train.py --out {run.path} --resume"
    try:
        yield
    except WriteError as error:
        sys.exit(f"error: {error}. {_what_is_kept(run)}; make room, then {go_on}")
    except OSError as error:
        sys.exit(f"error: {error}. {_what_is_kept(run)}; {go_on}")
    except TrainingStoppedError as stopped:
        processes.end(str(stopped))
    except Stopped as stopped:
        if processes.is_first:
            print(f"stopped by {stopped}. {_what_is_kept(run)}; {go_on}", flush=True)
        sys.exit(128 + stopped.number)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        if processes.rank <= 1:  # one of the two is alive; torchrun says which process died, and of what
            text = f"error: another process of this run has ended, so this one cannot go on. {_what_is_kept(run)}"
            print(f"{text}; {go_on}", file=sys.stderr, flush=True)
        sys.exit(1)


def _what_is_kept(run: RunFolder) -> str:
    found = states(run.checkpoints)
    return f"Kept: {found[-1]}" if found else "No state was saved yet"


def open_run(options: TrainingOptions, accelerator: Accelerator, held: ExitStack) -> tuple[RunFolder, Job]:
    """The run folder, new or gone on with, and the checked job; of several processes the first makes it.

    It is locked until `held` closes: a second training into it is refused.
    """
    processes = Processes.of(accelerator)
    if not processes.is_first:
        run = RunFolder(options.out, writes=False)
        return run, prepare(options, run)
    require_engine_fits(options.config, accelerator)
    require_tracker(options.config.tracking)
    require_attention(options.config.attention)
    if options.resume:
        held.enter_context(lock_run(RunFolder.open(options.out).path))
        run = RunFolder.resume(options.out, options.config)
        _require_state(run)
        job = prepare(options, run)
    else:
        RunFolder.check_new(options.out)
        job = prepare(options, None)
        held.enter_context(lock_run(options.out))
        run = RunFolder.create(options.out, options.config)
    print(_summary(job))
    if not run.catalog.exists():
        replace_folder(run.catalog, lambda folder: save_catalog(job, folder))
    return run, job


def dry_run(options: TrainingOptions, accelerator: Accelerator) -> None:
    """Print what the run would do and take; nothing is written, but for a --data-cache, which is filled as ever."""
    if accelerator.num_processes > 1:
        raise ValueError(f"--dry-run: expected one process, got {accelerator.num_processes}")
    config = options.config
    require_attention(config.attention)
    require_engine_fits(config, accelerator)
    RunFolder.check_new(options.out)
    job = prepare(options, None)
    print(_summary(job))
    reference = copy.deepcopy(job.model) if config.needs_reference else None
    model = trainable(job.model, job.catalog, config)
    print_plan(accelerator, model, reference, job.tokenizer, job.catalog, job.split, config)


def _require_state(run: RunFolder) -> None:
    """Refuse to go on from states that are damaged, gone or another run's, rather than to begin anew in silence."""
    found = find_state(run.checkpoints, run.config_digest)
    done = [stage for stage in ("sft", "grpo") if stage in run.results]
    if found is None and done:
        raise RunFolderError(
            f"--resume {run.path}: expected a state in {run.checkpoints}, found none, but results.json has the figures "
            f"of {done[-1]}: put the state back, or train anew with another --out"
        )


def require_engine_fits(config: Config, accelerator: Accelerator) -> None:
    """Refuse batches that do not part evenly among the processes, and what cannot be had with sharded weights."""
    sections: dict[str, OptimizerConfig] = {"sft": config.sft, "grpo": config.grpo}
    for name, section in sections.items():
        if section.batch_size % accelerator.num_processes:
            raise ValueError(
                f"{name}.batch_size: expected a multiple of the {accelerator.num_processes} processes, which share "
                f"every batch, got {section.batch_size}"
            )
        require_optimizer(section, name)
        if section.optimizer != "adamw" and accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError(
                f"{name}.optimizer: expected 'adamw' with FSDP2, which shards the moments, got {section.optimizer!r}"
            )
    if config.policy.lora_rank and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            f"policy.lora_rank: expected 0 with FSDP2, got {config.policy.lora_rank}: adapters are small, use DDP "
            "(torchrun without --use_fsdp)"
        )


def set_deterministic(wanted: bool) -> None:
    """Whether torch uses deterministic kernels alone."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # read by transformers
    torch.use_deterministic_algorithms(wanted)


def save_catalog(job: Job, folder: Path) -> None:
    job.catalog.save(folder)
    job.tokenizer.save_pretrained(folder)


def prepare(options: TrainingOptions, run: RunFolder | None) -> Job:
    """Load or make the data, the catalogue and the model; a resumed run takes its own catalogue."""
    config = options.config
    dataset, split = load_data(config)
    _require_training_data(split, config)
    if run is not None and run.catalog.exists():
        tokenizer, catalog = load_tokenizer(str(run.catalog)), Catalog.load(run.catalog)
        if not np.array_equal(dataset.items.item_ids, catalog.item_ids):
            raise ValueError(f"--data {config.data}: expected the items that the run was started with, got others")
    else:
        tokenizer, catalog = make_catalog(dataset, split, config)
    if config.model:
        known = len(load_tokenizer(config.model))  # the model's own, before items were added
        model = load_model(config.model, tokens=len(tokenizer), known=known, seed=config.seed)
    else:
        model = build_model(config.policy, tokenizer, config.seed)
    require_model_takes(model, config.attention)
    return Job(dataset, split, tokenizer, catalog, model)


def _summary(job: Job) -> str:
    dataset, trie = job.dataset, job.catalog.trie
    parameters = sum(p.numel() for p in job.model.parameters())
    return (
        f"{dataset.name}: {len(dataset.sequences):,} users ({dataset.users_left_out:,} with fewer than three items "
        f"left out), {job.catalog.num_items:,} items, {trie.num_nodes:,} trie nodes, depth {trie.max_depth}; "
        f"model: {parameters:,} parameters"
    )


def _require_training_data(split: Split, config: Config) -> None:
    """Refuse a split that leaves a stage nothing to train on, before anything is written."""
    if config.sft.epochs > 0 and not split.sft:
        raise ValueError(
            f"split.rl_share: expected a share that leaves SFT a user with two items, got {config.split.rl_share}: "
            "lower it or split.rl_targets, raise split.rl_seen, or set sft.epochs to 0"
        )
    if config.grpo.steps != 0 and len(split.rl) == 0:
        raise ValueError(
            f"split.rl_share: expected a share that keeps a user's interaction for RL, got {config.split.rl_share} "
            "(a user needs four items): raise it, or set grpo.steps to 0"
        )


def make_catalog(dataset: Dataset, split: Split, config: Config) -> tuple[PreTrainedTokenizerBase, Catalog]:
    """Items as tokens of the model's tokenizer, or of a small one made for them."""
    built = config.catalog.item_tokens == "semantic_id" and given_ids(dataset, config.catalog) is None
    if config.catalog.vectors is not None and not built:
        raise ValueError(
            "catalog.vectors: expected None where no semantic ids are built (items are titles, or the data has ids and "
            f"there is no catalog.rebuild_ids), got {config.catalog.vectors!r}"
        )
    semantic_ids = None
    if config.catalog.item_tokens == "semantic_id":
        semantic_ids = build_semantic_ids(dataset, config.catalog, training_sequences=split.training, seed=config.seed)
    tokenizer = load_tokenizer(config.model) if config.model else make_tokenizer(dataset, config.catalog, semantic_ids)
    catalog = build_catalog(
        dataset,
        tokenizer,
        config.catalog,
        training_sequences=split.training,
        seed=config.seed,
        semantic_ids=semantic_ids,
        prompt=config.prompt,
    )
    return tokenizer, catalog


def train(job: Job, config: Config, run: RunFolder, accelerator: Accelerator) -> None:
    """Run the stages that are not done yet, evaluate each best model, write results and report."""
    processes = Processes.of(accelerator)
    catalog = job.catalog.to(accelerator.device)
    best = job.dataset.best_recall
    run.add_results(
        config=dataclasses.asdict(config),
        dataset=_describe(job),
        best_achievable={str(k): value for k, value in best.items()} if best else None,
    )

    found = processes.ask_first(lambda: find_state(run.checkpoints, run.config_digest))
    progress = None if found is None else found[1]
    if progress is None or (progress.stage == "sft" and not progress.finished):
        torch.manual_seed(config.seed)
        model = trainable(job.model, catalog, config)
        progress = train_sft(accelerator, model, job.tokenizer, catalog, job.split, config, run)
        # GRPO loads its own model: this one and its optimizer make room on the GPU.
        accelerator.free_memory()
        if accelerator.distributed_type != DistributedType.FSDP:  # which holds a share of it that it will not move
            model.to("cpu")
    if progress.stage == "sft":
        _add_seconds(run, sft=progress.seconds)
    _evaluate_stage("sft", job, catalog, config, run, processes)

    if progress.stage == "sft" or not progress.finished:
        torch.manual_seed(config.seed)
        model, reference = policy_and_reference(run.checkpoints / "sft", catalog, config)
        progress = train_grpo(accelerator, model, reference, job.tokenizer, catalog, job.split, config, run)
    _add_seconds(run, grpo=progress.seconds)
    _evaluate_stage("grpo", job, catalog, config, run, processes)

    if processes.is_first:
        report = write_report([run.path], run.path)
        print_results(run)
        print(f"run: {run.path}   report: {report}")


def policy_and_reference(start: Path, catalog: Catalog, config: Config) -> tuple[nn.Module, nn.Module | None]:
    """What GRPO begins with; no reference where there is no KL term, or adapters can be switched off for it."""
    model = trainable(load_model(start), catalog, config)
    return model, load_model(start) if config.needs_reference else None


def trainable(model: nn.Module, catalog: Catalog, config: Config) -> nn.Module:
    if config.policy.lora_rank > 0:
        new = torch.unique(catalog.token_ids) if config.catalog.item_tokens == "semantic_id" else torch.tensor([])
        model = add_lora(model, config.policy, new[new >= 0].tolist())
    if config.policy.hidden_dropout > 0:
        add_dropout(model, config.policy.hidden_dropout)
    if config.policy.checkpoint_activations:
        checkpoint_activations(model)
    return model


def _evaluate_stage(
    name: str, job: Job, catalog: Catalog, config: Config, run: RunFolder, processes: Processes
) -> None:
    """Valid and test figures of a stage's best model, once."""
    known = processes.ask_first(lambda: run.results.get(name))
    if known is not None:
        run.tracking.add_results(name, known)  # a crash may have come between the two
        return
    started = time.monotonic()
    model = load_model(run.checkpoints / name).to(processes.device)
    figures, users = {}, {}
    for part in ("valid", "test"):
        examples = sampled(getattr(job.split, part), config.evaluation.test_users, config.seed)
        figures[part] = evaluate(
            model,
            catalog,
            examples,
            config.evaluation,
            description=f"{name} {part}",
            progress=processes.is_first,
            processes=processes,
        )
        users[part] = len(examples)
    _add_seconds(run, {name: figures, "users": users}, **{f"{name}_evaluation": time.monotonic() - started})
    run.tracking.add_results(name, figures)


def _add_seconds(run: RunFolder, parts: dict[str, Any] | None = None, **seconds: float) -> None:
    """Into the results, at once with other parts of them."""
    rounded = {name: round(value, 2) for name, value in seconds.items()}
    run.add_results(**(parts or {}), seconds={**run.results.get("seconds", {}), **rounded})


def _describe(job: Job) -> dict[str, Any]:
    """What results.json says of the data."""
    test = job.split.test
    histories = Ragged.of(test.histories)
    user = np.repeat(np.arange(len(test)), histories.lengths)
    repeats = np.bincount(user[histories.flat() == test.targets[user]], minlength=len(test)) > 0
    return {
        "name": job.dataset.name,
        "users": len(job.dataset.sequences),
        "users_left_out": job.dataset.users_left_out,
        "items": job.catalog.num_items,
        "interactions": int(Ragged.of(job.dataset.sequences).lengths.sum()),
        "repeat_share": round(float(np.mean(repeats)), 4),
    }


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:  # while data, catalogue and model were made: later ones are heard in train
        print("interrupted before training had begun", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    PartialState().destroy_process_group()
