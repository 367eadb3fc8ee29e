"""The newest whole state is found, damage is noticed byte by byte, and nothing is restarted in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tawin.run.states import (
    MANIFEST,
    StateError,
    damage,
    keep_newest,
    newest_whole,
    state_folder,
    states,
    write_manifest,
)


def make_state(checkpoints: Path, stage: str, step: int, config: str = "ours") -> Path:
    folder = state_folder(checkpoints, stage, step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"config": config}))
    for name in ("weights", "optimizer"):
        save_file({"w": torch.full((4,), float(step))}, folder / f"{name}.safetensors")
    write_manifest(folder)
    return folder


def make_earlier(checkpoints: Path) -> Path:
    """As versions before this one wrote it."""
    folder = make_state(checkpoints, "sft", 0)
    (folder / MANIFEST).unlink()
    (folder / "state.json").write_text("{}")
    return folder.rename(checkpoints / "state")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FILES = (MANIFEST, "state.json", "weights.safetensors", "optimizer.safetensors")
DAMAGES = (truncate, Path.unlink, flip_a_bit)


def test_states_are_ordered_by_stage_and_step_whatever_lies_beside_them(tmp_path: Path) -> None:
    for stage, step in (("grpo", 5), ("sft", 1_000_000), ("sft", 999_999), ("grpo", 40)):
        make_state(tmp_path, stage, step)
    for name in ("sft", "damaged-state-sft-000001", ".state-sft-000002.writing", "state-of-the-art"):
        (tmp_path / name).mkdir()
    expected = ["state-sft-999999", "state-sft-1000000", "state-grpo-000005", "state-grpo-000040"]
    assert [path.name for path in states(tmp_path)] == expected
    make_earlier(tmp_path)
    assert [path.name for path in states(tmp_path)] == ["state", *expected]
    assert newest_whole(tmp_path, "ours") == state_folder(tmp_path, "grpo", 40)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_a_damaged_state_is_set_aside_and_the_one_before_it_taken(
    hurt: Callable[[Path], None], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, newest = make_state(tmp_path, "sft", 9), make_state(tmp_path, "grpo", 3)
    assert newest_whole(tmp_path, "ours") == newest
    hurt(newest / name)
    assert name in str(damage(newest))
    assert newest_whole(tmp_path, "ours") == whole
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said and f"goes on from {whole.name}" in said
    assert (tmp_path / "damaged-state-grpo-000003").is_dir() and states(tmp_path) == [whole]


@pytest.mark.parametrize("hurt", [truncate, Path.unlink], ids=lambda hurt: hurt.__name__)
@pytest.mark.parametrize("name", FILES[1:])
def test_a_state_of_an_earlier_version_is_taken_if_it_is_whole(
    hurt: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    folder = make_earlier(tmp_path)
    assert newest_whole(tmp_path, "ours") == folder
    hurt(folder / name)
    with pytest.raises(StateError, match="no whole state to go on from"):
        newest_whole(tmp_path, "ours")


def test_without_a_whole_state_nothing_is_changed_and_every_reason_is_given(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(make_state(tmp_path, "sft", step) / "weights.safetensors")
    with pytest.raises(StateError, match=r"state-sft-000002: weights.* bytes.*; state-sft-000001: weights"):
        newest_whole(tmp_path, "ours")
    assert len(states(tmp_path)) == 2


def test_a_second_damaged_state_of_the_same_step_does_not_replace_the_first(tmp_path: Path) -> None:
    make_state(tmp_path, "sft", 1)
    for _ in range(2):
        truncate(make_state(tmp_path, "sft", 2) / "weights.safetensors")
        newest_whole(tmp_path, "ours")
    assert len(list(tmp_path.glob("damaged-state-sft-000002*"))) == 2


def test_a_state_of_another_config_is_refused_by_name(tmp_path: Path) -> None:
    make_state(tmp_path, "sft", 1)
    make_state(tmp_path, "sft", 2, config="theirs")
    with pytest.raises(StateError, match=r"state-sft-000002: expected a state of this run's config"):
        newest_whole(tmp_path, "ours")


def test_no_state_at_all_is_none(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, "ours") is None
    assert newest_whole(tmp_path / "absent", "ours") is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_newest_states_are_kept(count: int, tmp_path: Path) -> None:
    made = [
        make_earlier(tmp_path),
        *(make_state(tmp_path, "sft", step) for step in (1, 2)),
        make_state(tmp_path, "grpo", 0),
    ]
    keep_newest(tmp_path, count)
    assert states(tmp_path) == made[-count:]
    assert len(list(tmp_path.iterdir())) == min(count, 4)
