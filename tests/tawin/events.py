"""TensorBoard's event files, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer


def count_event_files_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the next event files numbers of one digit.

    TensorBoard reads files in the order of their names: second, machine, process, number. Here a run is stopped and
    goes on within one second and one process, and file 10 would be read before file 9.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def read_events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every figure, in the order in which TensorBoard shows them."""
    found = read_events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
