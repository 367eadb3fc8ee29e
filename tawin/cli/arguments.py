"""What the commands' options have in common: their types, and options that several commands take."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_command` adds to."""


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def add_stage(command: argparse.ArgumentParser) -> None:
    command.add_argument("--stage", choices=("sft", "grpo"), help="whose best model (default: grpo)")


def add_exclude_history(command: argparse.ArgumentParser) -> None:
    command.add_argument("--exclude-history", action="store_true", help="never recommend an item of the history")
