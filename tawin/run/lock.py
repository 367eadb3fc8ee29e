"""One training a run folder: a lock that goes with the process that holds it, however that ends.

It is flock(2) on RUN/.lock, which also names the holder. The file stays; only the lock on it counts. On a local disk it
holds between all processes of the machine. On NFS Linux turns it into a lock of the server, so it should hold between
machines too (not tried here). Where a file system has no locks (Lustre mounted without `flock`), training goes on with
a warning: there nothing refuses a second one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunInUseError(ValueError):
    """Another process trains in the folder; the message says which."""


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made where it is missing.

    Raises:
        RunInUseError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUseError(in_use_message(folder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"warning: {folder}: this file system has no locks ({error.strerror}): nothing would refuse a second "
                "training into the same folder",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def is_in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    try:
        with open(folder / NAME, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or no locks
        return False
    return False


def in_use_message(folder: Path) -> str:
    """Says who holds the lock."""
    holder = (folder / NAME).read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return f"--out {folder}: {holder} trains in this folder: wait for its end or stop it, or choose another folder"
