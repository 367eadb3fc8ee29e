"""What the cells of all tables share: data sets, SFT starts, and the folders in which they are worked on.

    OUT/records/<table>/*.parquet   finished cells
    OUT/starts/<digest>/            run folders of SFT stages, one for each set of options that SFT sees
    OUT/cells/<digest>/             run folders of cells under way, or done: their best model and their metrics

A start is made by whoever needs it first; others wait for it. Several processes may work in one folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from tawin.catalog.catalog import Catalog
from tawin.catalog.tokenizer import load_tokenizer
from tawin.config import Config, GRPOConfig
from tawin.config.files import with_options
from tawin.data.dataset import Dataset, Split
from tawin.run.atomic import replace_folder
from tawin.run.folder import RunFolder
from tawin.run.processes import make_accelerator
from tawin.serve.load import load_data
from tawin.train.checkpoint import find_state
from tawin.train.job import prepare, save_catalog
from tawin.train.pipeline import trainable
from tawin.train.sft import train_sft

from .plan import TRAINED, Cell
from .smollm2 import make_models, model_folder

NOT_TRAINERS = ("sdpo", "exact", "probes")  # options of a row that are not fields of the trainer's config
# What an SFT start does not depend on; the data set counts by its name, guards only where a run broke down.
NOT_OF_SFT = ("grpo", "data", "data_cache", "guards", "watchdog", "tracking", "checkpoints")


@dataclass(frozen=True)
class Workspace:
    """Where experiments read and write."""

    data: Path
    """Folder with a folder a data set."""
    out: Path

    def config(self, cell: Cell) -> Config:
        """The trainer's config of a cell."""
        data = None if cell.data == "synthetic" else str(self.data / cell.data)
        options = {name: value for name, value in cell.options.items() if name not in NOT_TRAINERS}
        where = f"{cell.table}: {cell.row.name}"
        config = with_options(dataclasses.replace(Config(), data=data, seed=cell.seed), options, where)
        encoder = model_folder(config.catalog.text_encoder, self.out)
        catalog = dataclasses.replace(config.catalog, text_encoder=encoder)
        return dataclasses.replace(config, model=model_folder(config.model, self.out), catalog=catalog)

    def record_path(self, cell: Cell) -> Path:
        """Where the finished cell is kept."""
        digest = _digest([cell.row.method, cell.row.name, cell.options])[:8]
        name = "".join(letter if letter.isalnum() else "-" for letter in cell.row.name)
        return self.out / "records" / cell.table / f"{cell.data}-{name}-{cell.seed}-{digest}.parquet"

    def cell_folder(self, cell: Cell) -> Path:
        """Where the cell is worked on. The same work in two tables has one folder."""
        return self.out / "cells" / _digest([cell.row.method, cell.data, cell.seed, cell.options])

    @contextlib.contextmanager
    def lock(self, path: Path, *, wait: bool) -> Iterator[bool]:
        """Hold the lock of a path; yields whether it was got. It goes with the process, however that ends."""
        locks = self.out / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / _digest(str(path.relative_to(self.out))), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def waits_for_start(self, cell: Cell) -> bool:
        """Whether another process is training the start that the cell needs."""
        if cell.row.method not in TRAINED:
            return False
        with self.lock(self._start_folder(_of_start(self.config(cell)), cell.data), wait=False) as is_free:
            return not is_free

    def _start_folder(self, config: Config, data: str) -> Path:
        sft_sees = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_OF_SFT}
        return self.out / "starts" / f"{data}-{_digest([data, sft_sees])[:16]}"

    def start(self, config: Config, data: str) -> RunFolder:
        """The run folder of the SFT stage with these options, finished."""
        config = _of_start(config)
        folder = self._start_folder(config, data)
        with self.lock(folder, wait=True):
            if not _is_finished(folder):
                _train_start(config, folder)
        return RunFolder.open(folder)


def _of_start(config: Config) -> Config:
    """The config that a start is trained with: which of the same sequences' items RL asks for is nothing to SFT."""
    split = dataclasses.replace(config.split, rl_prompts="last")
    return dataclasses.replace(config, grpo=GRPOConfig(steps=0), split=split)


def _is_finished(folder: Path) -> bool:
    """Whether the stage of a run folder, which this process has locked, is."""
    if not (folder / "config.yaml").exists():
        return False
    found = find_state(folder / "checkpoints", RunFolder.open(folder).config_digest)
    return found is not None and found[1].finished


@lru_cache(maxsize=1)
def accelerator() -> Accelerator:
    """This process's accelerator."""
    return make_accelerator()


@lru_cache(maxsize=2)  # the cells of a table go through one data set after another
def _dataset(config: Config) -> tuple[Dataset, Split]:
    return load_data(config)


def dataset_and_split(config: Config) -> tuple[Dataset, Split]:
    """The data of a config, loaded once."""
    same = Config(
        data=config.data, data_cache=config.data_cache, seed=config.seed, split=config.split, synthetic=config.synthetic
    )
    return _dataset(same)


def open_or_create(folder: Path, config: Config) -> RunFolder:
    """The run folder of a cell: new, or gone on with."""
    return RunFolder.resume(folder, config) if (folder / "config.yaml").exists() else RunFolder.create(folder, config)


def catalog_of(start: RunFolder) -> tuple[PreTrainedTokenizerBase, Catalog]:
    """Tokenizer and catalogue of a start, the latter on the device."""
    return load_tokenizer(str(start.catalog)), Catalog.load(start.catalog).to(accelerator().device)


def _train_start(config: Config, folder: Path) -> None:
    make_models(config.model, config.catalog.text_encoder)
    run = open_or_create(folder, config)
    job = prepare(config, run)
    if not run.catalog.exists():
        replace_folder(run.catalog, lambda new: save_catalog(job, config, new))
    catalog = job.catalog.to(accelerator().device)
    model = trainable(job.model, catalog, config)
    train_sft(accelerator(), model, job.tokenizer, catalog, job.split, config, run)
    accelerator().free_memory()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
