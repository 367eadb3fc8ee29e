"""What `tawin train` is asked to do: preset, YAML file and command line put together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tyro

from ..config import Config
from ..config.files import load_yaml
from ..config.presets import PRESETS
from ..run.folder import RunFolder

_HELP = """Train a generative recommender: SFT, then GRPO with TAWin.

--preset {demo,cpu-small,paper}  where the defaults below come from (default: demo)
--config FILE.yaml  options that replace the preset's
--out FOLDER  the run folder: new or empty (default: runs/<preset>-<time>)
--resume  go on with the run in --out, with the config it was started with
--dry-run  print the plan (steps, tokens, memory, time by a few measured steps) and write nothing
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
    try:
        if first.resume and first.preset is None and first.config is None:
            base = RunFolder.open(first.out).config
        else:
            base = PRESETS[first.preset or "demo"]
            if first.config is not None:
                base = load_yaml(first.config, base)
        config = tyro.cli(Config, default=base, args=rest, prog="tawin train", description=_HELP)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    name = f"{first.preset or 'demo'}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainingOptions(config, first.out or Path("runs") / name, first.resume, first.dry_run)
