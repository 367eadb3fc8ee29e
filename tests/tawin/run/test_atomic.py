"""What is written is whole or not there: when writing fails, when it is cut off anywhere, and for whoever reads."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tawin.run import atomic as durable
from tawin.run.atomic import (
    WriteError,
    clean_leftovers,
    finish_replacing,
    read_folder,
    replace_folder,
    replacing_file,
    write_atomically,
)


def filled(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        folder.mkdir()
        for name in "ab":
            (folder / name).write_text(text)

    return write


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in "ab"]


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a file system that can exchange two folders."""
    if request.param == "renamed twice":
        monkeypatch.setattr(durable, "_exchange", lambda *_: False)
    return request.param


def test_this_file_system_can_exchange_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not durable._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system of the tests cannot: replacing a folder takes two renames there")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        durable._exchange(tmp_path / "a", tmp_path / "absent")


@pytest.mark.usefixtures("way")
def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for text in ("old", "new", "newer"):
        replace_folder(tmp_path / "folder", filled(text))
        assert texts(tmp_path / "folder") == [text, text]
        assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.usefixtures("way")
def test_a_failed_replacement_leaves_the_old_folder_alone_and_names_the_path(tmp_path: Path) -> None:
    replace_folder(tmp_path / "folder", filled("old"))

    def fails(folder: Path) -> None:
        filled("half")(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"folder: could not be written: .*No space left on device"):
        replace_folder(tmp_path / "folder", fails)
    assert texts(tmp_path / "folder") == ["old", "old"]
    assert os.listdir(tmp_path) == ["folder"]


class CutOffError(Exception):
    """As a SIGKILL, but for what Python runs on its way out."""


def _cut_off(function, left: Iterator[int]):  # type: ignore[no-untyped-def]
    """The function, as long as something is left of the calls that all share."""

    def call(*arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise CutOffError
        return function(*arguments, **options)

    return call


@pytest.mark.usefixtures("way")
def test_cut_off_before_any_system_call_the_old_folder_or_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [(os, "rename"), (os, "fsync"), (durable.shutil, "rmtree")]
    seen: set[str] = set()
    for last in range(40):
        parent = tmp_path / str(last)
        parent.mkdir()
        replace_folder(parent / "folder", filled("old"))
        left = iter(range(last))
        with monkeypatch.context() as cut:
            for module, name in calls:
                cut.setattr(module, name, _cut_off(getattr(module, name), left))
            try:
                replace_folder(parent / "folder", filled("new"))
                is_done = True
            except CutOffError:
                is_done = False
        clean_leftovers(parent)
        assert os.listdir(parent) == ["folder"]
        found = texts(parent / "folder")
        assert found in (["old", "old"], ["new", "new"])
        seen.add(found[0])
        if is_done:
            assert seen == {"old", "new"} and last > 5
            return
    raise AssertionError("a replacement takes more calls than were tried")


def test_leftovers_of_a_kill_are_removed_and_an_old_folder_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / ".results.json.writing").write_text('{"ha')
    filled("half")(tmp_path / ".sft.writing")
    filled("old")(tmp_path / ".grpo.old")
    filled("older")(tmp_path / ".state.old")
    filled("new")(tmp_path / "state")
    (tmp_path / ".lock").touch()
    clean_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "grpo", "state"]
    assert texts(tmp_path / "grpo") == ["old", "old"] and texts(tmp_path / "state") == ["new", "new"]
    clean_leftovers(tmp_path / "absent")


def test_an_old_folder_does_not_replace_a_new_one(tmp_path: Path) -> None:
    filled("old")(tmp_path / ".a.old")
    filled("new")(tmp_path / "a")
    finish_replacing(tmp_path / "a")
    assert texts(tmp_path / "a") == ["new", "new"]


@pytest.mark.parametrize("content", ["text", b"\x00bytes"])
def test_a_file_is_written_whole_or_stays_as_it_was(
    content: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(WriteError, match=r"file: could not be written: .*No space"):
            write_atomically(path, content)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def _write_again_and_again(parent: Path) -> None:
    for number in range(150):
        replace_folder(parent / "folder", filled(f"{number}"))
        write_atomically(parent / "file", f"{number}:" + "x" * number)


def test_a_reader_in_another_process_never_meets_half_of_anything(tmp_path: Path) -> None:
    replace_folder(tmp_path / "folder", filled("start"))
    write_atomically(tmp_path / "file", "0:")
    gap_free = durable._exchange(tmp_path / "folder", tmp_path / "folder")
    writer = multiprocessing.get_context("fork").Process(target=_write_again_and_again, args=(tmp_path,))
    writer.start()
    seen = set()
    while writer.is_alive():
        number, _, rest = (tmp_path / "file").read_text().partition(":")
        assert rest == "x" * int(number)
        assert not gap_free or (tmp_path / "folder").is_dir()
        first, second = read_folder(tmp_path / "folder", texts)
        assert first == second
        seen.add(first)
    assert writer.exitcode == 0
    assert len(seen) > 3  # the folder was replaced while it was read


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    replace_folder(folder, filled("old"))
    reads = []

    def read(path: Path) -> list[str]:
        first = (path / "a").read_text()
        if not reads:
            thread = threading.Thread(target=replace_folder, args=(folder, filled("new")))
            thread.start()
            thread.join()
        reads.append(first)
        return [first, (path / "b").read_text()]

    assert read_folder(folder, read) == ["new", "new"]
    assert reads == ["old", "new"]


def test_what_is_wrong_with_a_folder_that_stays_is_said_at_once(tmp_path: Path) -> None:
    tries = []

    def read(path: Path) -> None:
        tries.append(path)
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        read_folder(tmp_path, read)
    assert len(tries) == 1


def test_a_file_that_cannot_be_written_is_named_and_not_the_part_beside_its_place() -> None:
    path = Path("/proc/file")  # where nobody can make one
    with pytest.raises(WriteError, match=r"^/proc/file: could not be written: "), replacing_file(path) as part:
        part.write_text("text")
    with pytest.raises(WriteError, match=r"^/proc/file: could not be written: "):
        write_atomically(path, "text")
