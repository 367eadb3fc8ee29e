"""`tawin train`: data -> catalogue -> SFT -> GRPO with TAWin -> evaluation -> report, in one run folder.

    tawin train                                          a synthetic catalogue, under 3 minutes on 2 CPU cores
    tawin train --preset cpu-small --data FOLDER         real interactions
    tawin train --out RUN --resume                       go on with a run that was stopped, killed or out of disk
    tawin train --dry-run                                what it would do and take
    torchrun --nproc-per-node 8 -m tawin train ...       on several GPUs, see docs/SCALING.md

Every option: tawin train --help
"""

from __future__ import annotations

import copy
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, PartialState
from transformers.utils import logging as transformers_logging

from ..config import Config, OptimizerConfig
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE
from ..dry_run import print_plan
from ..model.attention.causal import require_attention
from ..pretrained import missing_files
from ..run.atomic import WriteError, replace_folder
from ..run.folder import RunFolder, RunFolderError
from ..run.guards import TrainingStoppedError
from ..run.lock import lock_run
from ..run.processes import Processes, is_lost_process, make_accelerator
from ..run.signals import Stopped, stop_on_signals
from ..run.states import states
from ..run.tracking import require_tracker
from ..train.checkpoint import find_state
from ..train.engine import require_optimizer
from ..train.job import Job, prepare, save_catalog, summary
from ..train.pipeline import train, trainable
from .arguments import Commands
from .options import TrainingOptions, parse_training


def add_command(commands: Commands) -> None:
    """The line of `tawin --help` alone: `cli` hands the options over to `run`, as tyro reads them from the config."""
    commands.add_parser("train", help="train a recommender: SFT, then GRPO with TAWin", add_help=False)


def run(arguments: Sequence[str], parse: Callable[[Sequence[str]], TrainingOptions] = parse_training) -> None:
    """`main` as a program of its own, which says that Ctrl-C came before training and leaves no process group."""
    try:
        main(arguments, parse)
    except KeyboardInterrupt:  # while data, catalogue and model were made: later ones are heard in training
        print("interrupted before training had begun", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    PartialState().destroy_process_group()


def main(arguments: Sequence[str], parse: Callable[[Sequence[str]], TrainingOptions] = parse_training) -> None:
    """The whole job, or one process's part of it. `arguments`: the command line without the program's name.

    parse: what makes options of them.

    Ends with status 1 and a message where something is wrong, a full disk or the death of another process among it;
    with 128 and the signal's number where SIGTERM or Ctrl-C asked for the end in training, which is saved then.
    """
    transformers_logging.disable_progress_bar()
    with ExitStack() as held:
        try:
            accelerator = make_accelerator()
            processes = Processes.of(accelerator)
            options = processes.ask_first(lambda: parse(arguments))
            set_deterministic(options.config.deterministic)
            require_files(options)
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
    go_on = f"go on with: tawin train --out {shlex.quote(str(run.path))} --resume"
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


def require_files(options: TrainingOptions) -> None:
    """Name all that a run asks for and that is not there, before anything is loaded; ValueError."""
    config, problems = options.config, []
    if config.data is not None and not options.resume:  # of a run that goes on, the data may have been moved
        wanted = [Path(config.data) / name for name in (INTERACTIONS_FILE, ITEMS_FILE)]
        problems += [f"--data: expected {path}, found no such file" for path in wanted if not path.is_file()]
    catalog, vectors = config.catalog, config.catalog.vectors
    uses_them = catalog.item_tokens == "semantic_id" or (catalog.item_tokens == "item" and catalog.initialize)
    if vectors is not None and uses_them and not Path(vectors).is_file():
        problems.append(f"--catalog.vectors: expected {vectors}, found no such file")
    models = {"--model": config.model, "--catalog.text-encoder": config.catalog.text_encoder}
    problems += [
        f"{option} {name}: {lack}" for option, name in models.items() if name and (lack := missing_files(name))
    ]
    if problems:
        raise ValueError("\n       ".join(problems))


def open_run(options: TrainingOptions, accelerator: Accelerator, held: ExitStack) -> tuple[RunFolder, Job]:
    """The run folder, new or gone on with, and the checked job; of several processes the first makes it.

    It is locked until `held` closes: a second training into it is refused.
    """
    processes = Processes.of(accelerator)
    if not processes.is_first:
        run = RunFolder(options.out, writes=False)
        return run, prepare(options.config, run)
    require_engine_fits(options.config, accelerator)
    require_tracker(options.config.tracking)
    require_attention(options.config.attention)
    if options.resume:
        held.enter_context(lock_run(RunFolder.open(options.out).path))
        run = RunFolder.resume(options.out, options.config)
        _require_state(run)
        job = prepare(options.config, run)
    else:
        RunFolder.check_new(options.out)
        job = prepare(options.config, None)
        held.enter_context(lock_run(options.out))
        run = RunFolder.create(options.out, options.config)
    print(summary(job))
    if not run.catalog.exists():
        replace_folder(run.catalog, lambda folder: save_catalog(job, options.config, folder))
    return run, job


def dry_run(options: TrainingOptions, accelerator: Accelerator) -> None:
    """Print what the run would do and take; nothing is written, but for a --data-cache, which is filled as ever."""
    if accelerator.num_processes > 1:
        raise ValueError(f"--dry-run: expected one process, got {accelerator.num_processes}")
    config = options.config
    require_attention(config.attention)
    require_engine_fits(config, accelerator)
    RunFolder.check_new(options.out)
    job = prepare(config, None)
    print(summary(job))
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
