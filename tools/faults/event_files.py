"""TensorBoard's event files, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(folder: Path) -> EventAccumulator:
    """All that the event files in a folder show, nothing sampled."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every figure, in the order in which TensorBoard shows them."""
    return scalars_of(read_events(folder))


def scalars_of(found: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    """The same of what was read."""
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
