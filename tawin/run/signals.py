"""SIGTERM and Ctrl-C ask training to stop: the step is finished, the state saved, and the process ends.

A signal only sets a mark here. The training loops look at it after each step, evaluations after each batch, and raise
`Stopped` once all processes of the run know of it. Knows nothing of what is trained or saved.

torchrun passes on the signal that it gets to all processes and kills them 30 seconds later; so does a scheduler after
its own time of grace. A step or a save that takes longer is lost; the state before it is not.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .processes import ALONE, Processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_asked = 0  # the signal's number; a process has one set of handlers


class Stopped(Exception):  # noqa: N818: no error
    """A signal asked for the end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGINT ask to stop; afterwards the handlers are those from before.

    A second Ctrl-C ends the process at once. Signals that the process ignores (nohup) stay ignored. Outside of the main
    thread, which alone may handle signals, nothing changes.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = 0
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = 0


def _note(number: int, _frame: FrameType | None) -> None:
    global _asked
    if not _asked and os.environ.get("RANK", "0") == "0":
        text = f"\n{signal.Signals(number).name}: training is to stop and save after this step" + (
            "; Ctrl-C again ends it at once\n" if number == signal.SIGINT else "\n"
        )
        os.write(2, text.encode())  # print may be in the middle of something
    _asked = _asked or number
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def asked() -> bool:
    """Whether a signal asked this process to stop."""
    return _asked != 0


def asked_anywhere(processes: Processes = ALONE) -> int:
    """The signal that asked one of the processes to stop, the same on all of them; 0: none. All call it."""
    if processes.count == 1:
        return _asked
    found = processes.sums(*(float(_asked == number) for number in SIGNALS))
    return next((int(number) for number, count in zip(SIGNALS, found, strict=True) if count), 0)


def stop_if_asked(processes: Processes = ALONE) -> None:
    """Raise `Stopped` on all processes where one of them was asked to stop. All call it."""
    if number := asked_anywhere(processes):
        raise Stopped(number)
