"""`tawin export`: a run's best model as a plain Hugging Face folder with its catalogue and trie."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..run.folder import RunFolder
from ..serve.export import export
from .arguments import Commands, add_stage


def add_command(commands: Commands) -> None:
    command = commands.add_parser("export", help="a run's best model as a Hugging Face folder, with catalogue and trie")
    command.add_argument("run", type=Path)
    command.add_argument("folder", type=Path, help="new or empty")
    add_stage(command)
    command.set_defaults(act=_export)


def _export(options: argparse.Namespace) -> None:
    without_sid2pid = export(RunFolder.open(options.run), options.folder, options.stage)
    print(f"exported: {options.folder}   how to serve it: {options.folder / 'README.md'}")
    if without_sid2pid is not None:
        print(f"without sid2pid.json: {without_sid2pid}")
