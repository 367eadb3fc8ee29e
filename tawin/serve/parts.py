"""All users: a file of histories recommended in parts, on many processes, and gone on with after it was stopped.

The parts, a chunk of users each, are files in a folder beside the output; each appears whole. Each process has one
thread and a model of its own, and gets its chunks from the one that reads the histories, a few at a time: so memory
does not grow with the file. Where the folder is there already, by a command that was stopped, only what is missing is
computed. At the end the parts become the output, in order, and the folder goes. What a part holds depends on neither
the number of processes nor on where a stop came: the output is the same file, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from ..run.atomic import replacing_file, write_atomically
from ..run.folder import RunFolder
from ..run.lock import lock_run
from .histories import Histories, HistoryFile, open_histories
from .load import DEFAULT_STAGE, SERVING_FILE, Serving, best_model, load_serving
from .narrow import allowed_items
from .recommend import (
    BATCHES_A_CHUNK,
    Served,
    item_ids_of,
    recommend_chunk,
    require_known,
    require_out,
    schema_of,
    writer_of,
)

WAITING = 2  # chunks per process that have been read and not yet been written
REQUEST_FILE = "request.json"
_COUNTS = b"tawin"  # what became of a part's users, in the metadata of its schema


@dataclass(frozen=True)
class Request:
    """What is asked of a run, as a process of its own can be told it. The fields: see `recommend_file`."""

    run: Path
    stage: str | None = None
    top: int = 10
    batch_size: int | None = None
    exclude_history: bool = False
    titles: bool = False
    where: str | None = None
    leave_out: Path | None = None

    def open(self) -> Serving:
        """The model, its catalogue and how it is to be asked."""
        serving = load_serving(self.run, self.stage)
        options = serving.options.asked_for(self.top, exclude_history=self.exclude_history, batch_size=self.batch_size)
        among = allowed_items(serving.catalog, self.where, self.leave_out)
        return dataclasses.replace(serving, options=options, among=among)

    def identity(self, histories: Path, numbers: Path | None) -> dict[str, Any]:
        """What says that parts are of this very request: the options, and name, size and time of the files."""
        model = self.run
        if not (self.run / SERVING_FILE).exists():
            model = best_model(RunFolder.open(self.run), self.stage or DEFAULT_STAGE)
        files = [*sorted(path for path in model.iterdir() if path.is_file()), histories]
        files += [] if self.leave_out is None else [self.leave_out]
        asked = {name: str(value) for name, value in dataclasses.asdict(self).items()}
        found = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return {"asked": asked, "numbers": str(numbers), "files": found}


def recommend_in_parts(
    request: Request,
    histories: Path,
    out: Path,
    *,
    processes: int = 1,
    numbers: Path | None = None,
    progress: bool = False,
) -> Served:
    """Like `recommend_file`, on `processes` processes with a thread each; the same call goes on after a stop.

    Args:
        request: what is asked of which run.
        histories: the file of histories; `numbers`: see `open_histories`.
        out: a new file. The parts lie in the folder `out` + ".parts" until it is whole.
        progress: show a progress bar, of users.

    Raises:
        ValueError: `out` exists or is no parquet or csv; the folder has parts of another request; another process
            works on it.
        DataError: a file of histories that cannot be used, or in which no item is one of the catalogue.
    """
    require_out(out)
    folder = out.with_name(f"{out.name}.parts")
    serving = request.open()
    users_at_once = serving.options.evaluation.batch_size * BATCHES_A_CHUNK
    with open_histories(histories, serving.catalog, numbers, users_at_once) as file:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock_run(folder):
            _require_request(folder, request.identity(histories, numbers))
            ids = item_ids_of(serving.catalog, as_text=file.as_text)
            schema = schema_of(file, ids, request.titles)
            bar = tqdm(total=file.rows, desc="recommend", unit="user", disable=None if progress else True)
            with bar:
                served, count = _make_parts(request, file, ids, schema, folder, processes, bar)
            require_known(served, serving.catalog, histories)
            _join(folder, count, schema, out)
    shutil.rmtree(folder)
    return served


def _require_request(folder: Path, identity: dict[str, Any]) -> None:
    path, text = folder / REQUEST_FILE, json.dumps(identity, indent=1) + "\n"
    if not path.exists():
        if any(folder.glob("*.parquet")):
            raise ValueError(f"{folder}: expected the parts of this request, got files without {REQUEST_FILE}")
        write_atomically(path, text)
        return
    if path.read_text(encoding="utf-8") == text:
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differs = [name for name, value in identity["asked"].items() if before["asked"].get(name) != value]
    raise ValueError(
        f"{folder}: expected the parts of this very request, got those of one with another "
        f"{', '.join(differs) or 'model or file of histories'}; ask for that again, choose another --out, or remove it"
    )


def _make_parts(
    request: Request,
    file: HistoryFile,
    ids: pa.Array,
    schema: pa.Schema,
    folder: Path,
    processes: int,
    bar: tqdm,
) -> tuple[Served, int]:
    """Writes the parts that are missing. What became of all users, and how many parts there are."""
    served, count = Served(), 0
    running: set[Future[Served]] = set()
    workers = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (request, ids, schema))
    try:
        for count, chunk in enumerate(file.chunks, 1):
            path = _part(folder, count - 1)
            if path.exists():
                served += (done := _counts(path))
                bar.update(done.users)
                continue
            running.add(workers.submit(_work, chunk, path))
            if len(running) >= WAITING * processes:
                served += _finished(running, bar)
        while running:
            served += _finished(running, bar)
    finally:
        workers.shutdown(cancel_futures=True)
    return served, count


def _finished(running: set[Future[Served]], bar: tqdm) -> Served:
    """Waits for one chunk or more, and takes them out."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    total = Served()
    for each in done:
        total += (counts := each.result())
        bar.update(counts.users)
    return total


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.parquet"


def _counts(path: Path) -> Served:
    """Of a part that is there."""
    counts = Served(**json.loads(pq.read_schema(path).metadata[_COUNTS]))
    return dataclasses.replace(counts, known_before=counts.users)


def _join(folder: Path, count: int, schema: pa.Schema, out: Path) -> None:
    before = 0
    with replacing_file(out) as part, writer_of(part, schema, out.suffix.lower()) as write:
        for table in _tables(folder, count):
            write(table.replace_schema_metadata(None).cast(schema), before)
            before += table.num_rows


def _tables(folder: Path, count: int) -> Iterator[pa.Table]:
    for number in range(count):
        yield pq.read_table(_part(folder, number))


@dataclass(frozen=True)
class _Worker:
    serving: Serving
    request: Request
    ids: pa.Array
    schema: pa.Schema


_worker: _Worker | None = None  # of this process, where it is one of the pool


def _start_worker(request: Request, ids: pa.Array, schema: pa.Schema) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that reads decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = _Worker(request.open(), request, ids, schema)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its pool."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Histories, path: Path) -> Served:
    assert _worker is not None
    started = time.monotonic()
    columns, counts = recommend_chunk(_worker.serving, chunk, _worker.ids, _worker.request.top, _worker.request.titles)
    counts = dataclasses.replace(counts, seconds=time.monotonic() - started)
    users = [] if chunk.users is None else [chunk.users]
    table = pa.table([*users, *columns], schema=_worker.schema)
    table = table.replace_schema_metadata({_COUNTS: json.dumps(dataclasses.asdict(counts)).encode()})
    with replacing_file(path) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)
    return counts
