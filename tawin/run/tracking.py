"""What metrics.jsonl says, shown elsewhere as well: TensorBoard by default, Weights & Biases or Trackio by option.

metrics.jsonl and results.json stay the record of a run: a tracker gets copies of their numbers, and nothing is read
back from it. Names are the stage's, then the figure's: `sft/loss`, `grpo/valid/recall@3`, `grpo/results/test/ndcg@5`.
Of several processes the first one alone tracks. The services' trackers are accelerate's.

A run that is resumed does steps again whose lines were cut from metrics.jsonl. TensorBoard is told to forget them
(purge_step); the others get no line twice: tracking.json says how many they have. The figures of a finished stage are
handed over again whenever the run is resumed, in case that a crash came between them and their tracker.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import GeneralTracker, TrackioTracker, WandBTracker

from ..config import Config, TrackingConfig
from ..config.files import dump_yaml
from .atomic import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
CONFIG_SUFFIX, RESULTS_SUFFIX = ".config", ".results"
STATE_FILE = "tracking.json"
METRICS_FILE = "metrics.jsonl"


class Tracking:
    """A tracker that shows nothing; what the others are derived from."""

    def begin(self, stage: str, step: int | None) -> None:
        """A stage starts, or goes on behind `step`, its last one in metrics.jsonl; None: there is nothing of it yet."""

    def log(self, line: dict[str, Any]) -> None:
        """A line that was just written to metrics.jsonl."""

    def add_results(self, stage: str, figures: dict[str, dict[str, float]]) -> None:
        """The final figures of a stage, by part of the data; shown once, however often they come."""

    def finish(self, *, failed: bool) -> None:
        """Nothing more will come."""


NOT_TRACKED = Tracking()


def require_tracker(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed; TensorBoard, the default, can be done without."""
    if config.to in ("wandb", "trackio") and importlib.util.find_spec(config.to) is None:
        raise ValueError(f"tracking.to: {config.to!r} needs {config.to}: pip install {config.to}")


def start_tracking(folder: Path, config: Config) -> Tracking:
    """The tracker that a run in `folder` is to be shown by."""
    to, project = config.tracking.to, config.tracking.project
    if to == "none":
        return NOT_TRACKED
    if to == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            print("tracking: tensorboard is not installed and writes nothing: pip install tensorboard")
            return NOT_TRACKED
        return TensorBoard(folder, config)

    def make(identity: str) -> GeneralTracker:
        name = folder.resolve().name
        if to == "wandb":
            return WandBTracker(project, name=name, id=identity, resume="allow", dir=str(folder))
        return TrackioTracker(project, name=f"{name}-{identity}", resume="allow", embed=False)

    return Service(folder, config, make)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, their names joined by slashes."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The figures of a line of metrics.jsonl, by their names in a tracker."""
    prefix = f"{line['stage']}/" + (f"alarm/{line['alarm']}/" if "alarm" in line else "")  # the watchdog's lines
    named = flat({name: value for name, value in line.items() if name != "step"}, prefix)
    return {name: value for name, value in named.items() if isinstance(value, int | float)}


class TensorBoard(Tracking):
    """Event files in tensorboard/sft and tensorboard/grpo: each stage counts its own steps, and forgets its own.

    The config and the results have event files of their own, and what a crash has left of one is replaced: not every
    reader forgets text, and the results stand at a step that is not to be forgotten.

    Readers take files by name, in which the second stands before a number without leading zeros: of two files of one
    second the later one may come first, and then be forgotten with all that the other one's purge_step forgets.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._metrics = folder / FOLDER, folder / METRICS_FILE
        self._config = config
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, stage: str, step: int | None) -> None:
        self._writers[stage] = self._open(stage, purge_step=step or 0)
        if not step:
            with self._replacing(stage, CONFIG_SUFFIX) as writer:
                writer.add_text("config", f"```\n{dump_yaml(self._config)}```", global_step=0)
        # The last step is forgotten too and told anew: its evaluation may have been shown, and is yet to be done again.
        for line in self._lines(stage):
            if line["step"] == step:
                self.log(line)

    def log(self, line: dict[str, Any]) -> None:
        writer = self._writers[line["stage"]]
        for name, value in numbers(line).items():
            writer.add_scalar(name, value, global_step=line["step"])
        writer.flush()

    def add_results(self, stage: str, figures: dict[str, dict[str, float]]) -> None:
        from torch.utils.tensorboard.summary import hparams

        step = max((line["step"] for line in self._lines(stage)), default=0)
        named = flat({"results": figures}, f"{stage}/")
        options = {
            name: ", ".join(value) if isinstance(value, tuple) else value
            for name, value in flat(dataclasses.asdict(self._config)).items()
            if value is not None
        }
        with self._replacing(stage, RESULTS_SUFFIX) as writer:
            # As its add_hparams does, which would make a file without the suffix.
            for summary in hparams(options, named):
                writer.file_writer.add_summary(summary, step)
            for name, value in named.items():
                writer.add_scalar(name, value, global_step=step)

    def finish(self, *, failed: bool) -> None:
        for writer in self._writers.values():
            writer.close()

    def _replacing(self, stage: str, suffix: str) -> SummaryWriter:
        """A new event file, the only one of a stage with this suffix."""
        for path in (self._folder / stage).glob(f"*{suffix}"):
            path.unlink()
        return self._open(stage, filename_suffix=suffix)

    def _open(self, stage: str, **options: Any) -> SummaryWriter:
        """A new event file, which readers take up behind all others of the stage."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / stage
        others = set(folder.glob("*"))
        writer = SummaryWriter(str(folder), **options)
        (path,) = set(folder.glob("*")) - others
        if others and path < max(others):
            writer.close()
            path.unlink()
            time.sleep(1.0)  # into the next second; a clock that was set back is not waited for
            writer = SummaryWriter(str(folder), **options)
        return writer

    def _lines(self, stage: str) -> list[dict[str, Any]]:
        """The whole lines of a stage in metrics.jsonl; the report refuses one that is damaged, nothing does so here."""
        found = []
        for text in self._metrics.read_bytes().splitlines() if self._metrics.exists() else []:
            with suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                if line["stage"] == stage and isinstance(line["step"], int):
                    found.append(line)
        return found


class Service(Tracking):
    """Weights & Biases or Trackio: one run of theirs for a run folder, which goes on where the folder's goes on."""

    def __init__(self, folder: Path, config: Config, make: Callable[[str], GeneralTracker]) -> None:
        self._metrics, self._path = folder / METRICS_FILE, folder / STATE_FILE
        self._state: dict[str, Any] = {"to": config.tracking.to, "id": secrets.token_hex(4), "lines": 0, "results": []}
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        if known.get("to") == config.tracking.to:
            self._state |= known
        self._line = 0
        self._tracker = make(self._state["id"])
        self._tracker.start()
        self._tracker.store_init_configuration(flat(dataclasses.asdict(config)))

    def begin(self, stage: str, step: int | None) -> None:
        self._line = self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0
        if self._state["to"] == "wandb":  # whose own step may never go back: a stage's figures stand over its steps
            self._tracker.tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def log(self, line: dict[str, Any]) -> None:
        self._line += 1
        if self._line <= self._state["lines"]:
            return
        if self._state["to"] == "wandb":
            self._tracker.log({**numbers(line), f"{line['stage']}/step": line["step"]}, step=self._line)
        else:
            self._tracker.log(numbers(line), step=line["step"])
        self._note(lines=self._line)

    def add_results(self, stage: str, figures: dict[str, dict[str, float]]) -> None:
        if stage in self._state["results"]:
            return
        self._tracker.log(flat({"results": figures}, f"{stage}/"))
        self._note(results=[*self._state["results"], stage])

    def _note(self, **told: Any) -> None:
        self._state |= told
        write_atomically(self._path, json.dumps(self._state))

    def finish(self, *, failed: bool) -> None:
        if self._state["to"] == "wandb":
            self._tracker.tracker.finish(exit_code=int(failed))
        else:
            self._tracker.finish()
