"""The console script `tawin`, also `python -m tawin`: it hears Ctrl-C before it imports what takes seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> None:
    """`arguments`: the command line without the program's name; None: the process's own."""
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored, as behind nohup
    if hears:
        signal.signal(signal.SIGINT, _end)
    from .cli import main as command_line

    if hears:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line(arguments)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """At once: nothing is open yet, and a KeyboardInterrupt would be lost in a library's `except` or be a traceback."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
