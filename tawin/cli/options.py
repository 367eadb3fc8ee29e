"""What `tawin train` and `tawin extend` are asked to do: preset, YAML file or run, and command line put together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
import tyro

from ..config import Config
from ..config.files import load_yaml
from ..config.presets import PRESETS
from ..config.retired import refuse_in
from ..run.folder import RunFolder
from ..serve.load import catalog_of_model
from ..train.extend import extended_config
from .arguments import add_stage

_HELP = """Train a generative recommender: SFT, then GRPO with TAWin.

--preset {demo,cpu-small,cpu-pretrained,paper}  where the defaults below come from (default: demo; with a pretrained
    --model: paper on a GPU, else cpu-pretrained)
--config FILE.yaml  options that replace the preset's
--out FOLDER  the run folder: new or empty (default: runs/<preset>-<time>)
--resume  go on with the run in --out, with the config it was started with
--dry-run  print the plan (steps, tokens, memory, time by a few measured steps) and write nothing
"""


_HELP_EXTEND = """Go on with a newer log: items keep their tokens, by the log's own ids, and new ones get some.

RUN  the run to go on from, before all options; every option below is as RUN has it, unless it is given
--data FOLDER  the newer log, prepared as RUN's was
--out FOLDER  the run folder: new or empty; `tawin train --out FOLDER --resume` goes on with it
--stage {sft,grpo}  whose best model (default: grpo)
--dry-run  print the plan and write nothing
"""


@dataclass(frozen=True)
class TrainingOptions:
    """What `tawin train` was asked to do."""

    config: Config
    out: Path
    resume: bool
    dry_run: bool = False


def parse_training(arguments: Sequence[str]) -> TrainingOptions:
    """Preset, then YAML, then command line; with --resume the run's own config comes in place of the first two.

    Exits with status 2 and a message that names the option where one is unknown or wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="tawin train")
    parser.add_argument("--preset", choices=tuple(PRESETS))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    first, rest = parser.parse_known_args(arguments)
    if first.resume and first.out is None:
        parser.error("--resume: expected --out FOLDER, the run to go on with")
    if first.resume and first.dry_run:
        parser.error("--dry-run: expected it without --resume; it plans a run from its start")
    name = first.preset or "demo"
    try:
        refuse_in(rest)
        if first.resume and first.preset is None and first.config is None:
            base = RunFolder.open(first.out).config
        else:
            name = first.preset or default_preset(_model_of(rest, first.config))
            base = PRESETS[name]
            if first.config is not None:
                base = load_yaml(first.config, base)
        config = tyro.cli(Config, default=base, args=rest, prog="tawin train", description=_HELP)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainingOptions(config, first.out or Path("runs") / name, first.resume, first.dry_run)


def parse_extension(arguments: Sequence[str]) -> TrainingOptions:
    """What `tawin extend RUN --data NEW --out RUN2` asks for: a run with RUN's own options, but for those given.

    Exits as `parse_training` does.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="tawin extend")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    add_stage(parser)
    parser.add_argument("--dry-run", action="store_true")
    is_named = bool(arguments) and not arguments[0].startswith("-")
    if not is_named and not {"-h", "--help"} & set(arguments):
        parser.error(
            f"expected RUN, the run to go on from, before all options, got {arguments[0] if arguments else None}"
        )
    if not is_named:
        tyro.cli(Config, args=["--help"], prog="tawin extend RUN", description=_HELP_EXTEND)
    first, rest = parser.parse_known_args(arguments[1:])
    try:
        refuse_in(rest)
        base = extended_config(RunFolder.open(Path(arguments[0])), first.data, first.stage)
        config = tyro.cli(Config, default=base, args=rest, prog="tawin extend RUN", description=_HELP_EXTEND)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    return TrainingOptions(config, first.out, resume=False, dry_run=first.dry_run)


def default_preset(model: str | None) -> str:
    """The preset of a run that names none: learning rates that suit a pretrained model where there is one.

    A model of an earlier run is none: it goes on as the small decoder that it is.
    """
    if model is None or catalog_of_model(model) is not None:
        return "demo"
    preset = "paper" if torch.cuda.is_available() else "cpu-pretrained"
    print(f"preset: {preset} (for a pretrained --model; --preset names another)", file=sys.stderr)
    return preset


def _model_of(arguments: Sequence[str], config: Path | None) -> str | None:
    """The --model of a command line, or of its YAML."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model")
    model = parser.parse_known_args(arguments)[0].model
    if model is None and config is not None:
        model = load_yaml(config).model
    return None if model in (None, "None") else model
