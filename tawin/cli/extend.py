"""`tawin extend`: a new run that goes on from another one's model and items with a newer log."""

from __future__ import annotations

from collections.abc import Sequence

from .arguments import Commands
from .options import parse_extension
from .train import run as train


def add_command(commands: Commands) -> None:
    """The line of `tawin --help` alone: `cli` hands the options over to `run`, as for `tawin train`."""
    commands.add_parser("extend", help="go on with a newer log: new items, the old model", add_help=False)


def run(arguments: Sequence[str]) -> None:
    train(arguments, parse_extension)
