"""All users in parts: the same lists as one process gives, and the same file after a kill in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.run.lock import RunInUseError, lock_run
from tawin.serve.load import load_serving
from tawin.serve.parts import Request, recommend_in_parts
from tawin.serve.recommend import recommend_file

from ..runs import make_run

USERS = 1000  # 16 parts of 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("parts") / "run").path


@pytest.fixture(scope="module")
def histories(run: Path) -> Path:
    draw = np.random.default_rng(0)
    ids = load_serving(run).catalog.item_ids
    lists = [draw.choice(ids, size=draw.integers(0, 6)).tolist() for _ in range(USERS)]
    path = run.parent / "in.parquet"
    users = [f"user {number}" for number in range(USERS)]
    pq.write_table(pa.table({"user_id": users, "item_ids": pa.array(lists, pa.list_(pa.int64()))}), path)
    return path


def command(run: Path, histories: Path, out: Path) -> list[str]:
    arguments = ["--histories", str(histories), "--out", str(out), "--processes", "2", "--top", "5"]
    return [sys.executable, "-m", "tawin", "recommend", str(run), *arguments]


def test_a_kill_in_the_middle_and_the_same_command_give_the_same_file(
    run: Path, histories: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    done = subprocess.run(command(run, histories, whole), capture_output=True, text=True, check=True)
    assert f"{USERS:,} users in" in done.stdout

    parts = tmp_path / "killed.parquet.parts"
    process = subprocess.Popen(command(run, histories, killed), stderr=subprocess.DEVNULL)
    while len(list(parts.glob("0*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    time.sleep(1.0)  # its processes end with it
    kept = sorted(parts.glob("0*.parquet"))
    assert len(kept) >= 2
    if len(kept) == 16:  # a quick machine: something is to be left to do
        kept.pop().unlink()
    subprocess.run(command(run, histories, killed), capture_output=True, check=True)
    assert killed.read_bytes() == whole.read_bytes()
    assert not parts.exists()

    recommend_file(load_serving(run), histories, tmp_path / "alone.parquet", top=5)
    names = ["user_id", "item_ids"]
    assert pq.read_table(whole).select(names).equals(pq.read_table(tmp_path / "alone.parquet").select(names))


def test_parts_of_another_request_are_refused_and_kept(
    run: Path, histories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, parts, small = tmp_path / "out.csv", tmp_path / "out.csv.parts", tmp_path / "small.parquet"
    pq.write_table(pq.read_table(histories).slice(0, 70), small)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tawin.serve.parts._join", stop)
        recommend_in_parts(Request(run, top=3), small, out)
    assert len(list(parts.glob("0*.parquet"))) == 2
    with pytest.raises(ValueError, match=r"out.csv.parts: expected the parts of this very request, .* another top"):
        recommend_in_parts(Request(run, top=4), small, out)
    with pytest.raises(ValueError, match="another model or file of histories"):
        recommend_in_parts(Request(run, top=3), histories, out)
    with lock_run(parts), pytest.raises(RunInUseError):
        recommend_in_parts(Request(run, top=3), small, out)
    served = recommend_in_parts(Request(run, top=3), small, out)
    assert served.users == served.known_before == 70
    assert out.read_text().splitlines()[0] == '"user_id","rank","item_id","score"'
    assert not parts.exists()
