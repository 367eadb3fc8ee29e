"""The console script `tawin`. Its commands are modules here, and are imported when they are asked for.

So `tawin --version --env` works where the trainer's dependencies are missing, which every command says in a line.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ..environment import describe, named_extra

_DESCRIPTION = "Train LLM-based recommenders, and look at and use the runs."


def main(arguments: Sequence[str] | None = None) -> None:
    """The whole command line. `arguments`: the command line without the program's name; None: the process's own.

    Ends with status 1 and a message where something is wrong, a dependency that is not installed among it, and with
    130 and one line after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"--version", "--env"} & set(arguments[:1]):
        return print_version(arguments)
    with named_extra("train"), _interrupted_at_once():
        from transformers.utils import logging as transformers_logging

        from . import extend, train
        from .commands import COMMANDS
    for name, command in (("train", train), ("extend", extend)):
        if arguments[:1] == [name]:
            return command.run(arguments[1:])
    parser = argparse.ArgumentParser(prog="tawin", description=_DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="with --env also what is installed, for a bug report")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        options.act(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Ctrl-C within it, while imports take their seconds, ends the process with a line.

    Nothing is open yet, and a KeyboardInterrupt would be lost in a library's `except` or be a traceback.
    """
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored, as behind nohup
    if not hears or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def print_version(arguments: Sequence[str]) -> None:
    """`tawin --version`, and with `--env` what a bug report needs."""
    from .. import __version__

    parser = argparse.ArgumentParser(prog="tawin", add_help=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--env", action="store_true")
    options = parser.parse_args(arguments)
    print(f"tawin {__version__}")
    if options.env:
        print(describe())
