"""Parts of a GPU run as processes of their own: what crashes or hangs takes nothing else with it.

Nothing is written into the repository, and where the home folder cannot be written to, what Triton compiles goes to the
system's folder for temporary files, which all parts share.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAST_CHARACTERS = 6000  # of a process's output that are kept
_SECONDS_TO_FINISH = 5  # after an interrupt
_SECONDS_TO_SAVE = 5  # a session's results after its last test; an interrupt there would lose them


def pytest_command(*paths: str, limit: float) -> list[str]:
    """It begins no test when it has used most of its time."""
    uninterrupted = limit - _SECONDS_TO_FINISH
    return [
        sys.executable,
        "-m",
        "pytest",
        *paths,
        "-p",
        "no:cacheprovider",
        "-p",
        "tools.gpu.stop_after",
        "--stop-after",
        f"{max(1.0, uninterrupted - max(_SECONDS_TO_SAVE, 0.2 * uninterrupted)):.0f}",
    ]


def compiler_caches() -> dict[str, str]:
    """Where Triton is to keep what it compiles, if it cannot be where it would be."""
    chosen = {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys()
    if chosen or os.access(Path.home(), os.W_OK):
        return {}
    return {"TRITON_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"triton-{os.getuid()}")}


def run_process(
    command: Sequence[str], limit: float, *, keep_all: bool = False, log: Path | None = None, **variables: str
) -> dict[str, Any]:
    """A process in the repository's root; out of time it is interrupted, and killed if that does not help.

    keep_all: its whole output, not just the end. log: a file that its output is appended to as it comes.
    variables: of its environment, beside ours; TRITON_INTERPRET is not taken over, nor what says that we are a worker
        of pytest-xdist: pytest-benchmark would measure nothing.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "TRITON_INTERPRET" and not name.startswith("PYTEST_XDIST")
    }
    environment |= compiler_caches() | variables
    start = time.monotonic()
    # No pipe, which a child left behind could hold open.
    with tempfile.TemporaryFile() if log is None else log.open("a+b") as file:
        begin = file.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        out_of_time = False
        try:
            process.wait(max(1.0, limit - _SECONDS_TO_FINISH))
        except subprocess.TimeoutExpired:
            out_of_time = True
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_SECONDS_TO_FINISH)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        with suppress(ProcessLookupError):  # whom it has started and left behind
            os.killpg(process.pid, signal.SIGKILL)
        file.seek(begin)
        output = file.read().decode(errors="replace")
    return {
        "command": " ".join(command[1:]),
        "status": process.returncode,
        "out_of_time": out_of_time,
        "seconds": round(time.monotonic() - start, 1),
        "output": output if keep_all else output[-LAST_CHARACTERS:],
    }
