"""A run folder in use is refused, by the name of its holder, until the holder lets go or dies."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tawin.run.lock import RunInUseError, is_in_use, lock_run


def _hold(folder: Path, held: Event) -> None:
    with lock_run(folder):
        held.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_with_the_first_ones_number_and_host(holder: BaseProcess, tmp_path: Path) -> None:
    expected = rf"process {holder.pid} on {os.uname().nodename} trains in this folder"
    with pytest.raises(RunInUseError, match=expected), lock_run(tmp_path):
        raise AssertionError("two hold the lock")
    assert is_in_use(tmp_path)


def test_a_kill_releases_the_lock(holder: BaseProcess, tmp_path: Path) -> None:
    holder.kill()
    holder.join()
    assert not is_in_use(tmp_path)
    with lock_run(tmp_path):
        assert is_in_use(tmp_path)
    assert not is_in_use(tmp_path)


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock_run(tmp_path / "new" / "run"):
        raise RuntimeError
    with lock_run(tmp_path / "new" / "run"):
        pass
    assert not is_in_use(tmp_path / "absent")


def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_run(tmp_path):
        pass
    assert "this file system has no locks (No locks available)" in capsys.readouterr().err
