"""The names of TensorBoard's event files in tests."""

from __future__ import annotations

import pytest
from tensorboard.summary.writer import event_file_writer


def count_event_files_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the next event files numbers of one digit.

    TensorBoard reads files in the order of their names: second, machine, process, number. Here a run is stopped and
    goes on within one second and one process, and file 10 would be read before file 9.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
