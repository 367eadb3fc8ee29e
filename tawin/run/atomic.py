"""Files and folders that are whole or not there: after a crash, on a full disk, and for whoever reads meanwhile.

What is written lies beside its place until it is on the disk (fsync of the files and of their folder), then it takes
its place in one step (rename, or an exchange of two folders), then the folder around it is fsynced. So a crash leaves
the old content or the new one, and at most a leftover whose name ends in ".writing", which `clean_leftovers` removes.

One process writes a path at a time; who that is, is not decided here (see lock.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

T = TypeVar("T")

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and stdio.h of Linux
_READS = 20  # how often a folder is read again that was replaced meanwhile


class WriteError(OSError):
    """A file or folder could not be written; what was there before is whole."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says of writing in the block, as on a full disk, is a WriteError that names `path`."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path}: could not be written: {error}") from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A path to write a file at: once the block has ended it is put in the place of `path`, and is gone if it fails.

    Raises:
        WriteError: see `writing`.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with writing(path):
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part. Text is UTF-8.

    Raises:
        WriteError: the disk is full, or whatever else the system says; names the path.
    """
    with replacing_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside its place, then put it there whole.

    Where the file system can exchange two folders (ext4, xfs, btrfs, tmpfs), there is one at every moment. Elsewhere
    there is none for the moment between two renames; a crash in it loses nothing, see `finish_replacing`.

    Args:
        folder: its parent is made where it is missing, without parents of its own.
        write: makes the folder that it is given and fills it.

    Raises:
        WriteError: the disk is full, or whatever else the system says; the old folder stays, the part is removed.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    try:
        with writing(folder):
            folder.parent.mkdir(exist_ok=True)
            finish_replacing(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            write(temporary)
            _sync_tree(temporary)
            _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # a part, or after an exchange the old folder


def _put(temporary: Path, folder: Path) -> None:
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)  # of a replacement that was cut off at its very end
    if folder.exists() and not _exchange(temporary, folder):
        os.rename(folder, old)
    if temporary.exists() and not folder.exists():
        os.rename(temporary, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def finish_replacing(folder: Path) -> None:
    """After a crash between the two renames of a replacement, the old folder is still whole: take it back."""
    old = _old(folder)
    if old.exists() and not folder.exists():
        os.rename(old, folder)
        sync_folder(folder.parent)


def clean_leftovers(parent: Path) -> None:
    """Remove what writing that was cut off has left in a folder, whole old folders aside, which are taken back."""
    if not parent.is_dir():
        return
    for old in parent.glob(".*.old"):
        finish_replacing(old.with_name(old.name[1 : -len(".old")]))
    for path in [*parent.glob(".*.writing"), *parent.glob(".*.old")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def sync_folder(folder: Path) -> None:
    """Have the system put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not know fsync of folders
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Have the system put a file's content on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync_folder(path) if path.is_dir() else sync_file(path)
    sync_folder(folder)


def read_folder(folder: Path, read: Callable[[Path], T]) -> T:
    """read(folder), and again where the folder was replaced meanwhile: never a mix of two, whoever writes.

    Raises whatever `read` raises on a folder that stays as it is.
    """
    for left in reversed(range(_READS)):
        before = _identity(folder)
        try:
            found = read(folder)
        except Exception:
            if left == 0 or (before is not None and before == _identity(folder)):
                raise
        else:
            if before == _identity(folder):
                return found
        time.sleep(0.05)
    raise OSError(f"{folder}: was replaced each of the {_READS} times that it was read")


def _identity(folder: Path) -> tuple[int, int] | None:
    """What changes when another folder takes the place; None: there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
