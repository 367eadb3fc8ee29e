"""Run a table of experiments and write its report.

    python -m experiments.run main --data ROOT --seeds 0 1 2 3 4 --jobs 2

A finished cell is a file and is never run again; a cell that was stopped goes on from its last checkpoint. So the same
command resumes a table, adds seeds to it, or just writes its report anew.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from tawin.config import Config, EvaluationConfig
from tawin.config.retired import without_retired

from .baselines import MODELS, SequenceModelOptions
from .methods import check, run_cell
from .plan import Cell, Table, cells, load_table, merge, table_names
from .report import write_report
from .statistics import is_per_user
from .store import Record, read_records, write_records
from .workspace import Workspace

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Run a table of experiments and write its report."""

    table: Annotated[str, tyro.conf.Positional]
    """A file of experiments/tables by its name without .yaml, or any other by its path; "list" names them."""
    data: Path | None = None
    """Folder with a folder a data set (toys, yelp, industrial, office); not needed for synthetic and theory."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    only: tuple[str, ...] = ()
    """Data sets to run; none named: all of the table's."""
    rows: tuple[str, ...] = ()
    """Rows to run, by their names, or by their beginnings with a * behind them; none named: all."""
    out: Path = Path("runs/experiments")
    """Working folder: starts, cells, their records. The same folder goes on where it stopped."""
    results: Path = RESULTS
    """Where the table's parquet file, markdown and figures are written."""
    jobs: int = 1
    """Processes that work side by side, a CPU thread each where there are several."""
    report_only: bool = False
    """Run nothing; write the report of what --results holds already."""
    no_report: bool = False
    """Run cells and write no report, as each of several --jobs does."""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 where a cell failed."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.run")
    if options.table == "list":
        print("\n".join(f"{name}: {load_table(name).title}" for name in table_names()))
        return 0
    try:
        table = load_table(options.table)
        workspace, wanted = _plan(options, table)
    except ValueError as error:
        sys.exit(f"error: {error}")
    kept = options.results / f"{table.name}.parquet"
    failed = 0
    if not options.report_only:
        failed = _run_side_by_side(arguments, options.jobs) if options.jobs > 1 else _run(wanted, workspace)
        if options.no_report:
            return int(failed > 0)
        with workspace.lock(workspace.out / "records" / table.name, wait=True):
            _keep(table, wanted, workspace, kept)
    if not kept.exists():
        print(f"{kept}: no finished cell yet")
        return 1
    for path in write_report(table, read_records(kept), options.results):
        print(path)
    return int(failed > 0)


def _plan(options: Options, table: Table) -> tuple[Workspace, list[Cell]]:
    """Where to work and the cells that are asked for; bad options are refused."""
    if options.jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, got {options.jobs}")
    if not options.seeds or min(options.seeds) < 0:
        raise ValueError(f"--seeds: expected numbers from 0 on, got {options.seeds}")
    unknown = set(options.only) - set(table.data)
    if unknown:
        raise ValueError(f"--only: expected data sets among {table.data}, got {sorted(unknown)}")
    wanted = [
        cell
        for cell in cells(table, list(options.seeds), list(options.only) or None)
        if not options.rows or any(_is_named(cell.row.name, wanted) for wanted in options.rows)
    ]
    if not wanted:
        raise ValueError(f"--rows: expected some of {[row.name for row in table.rows]}, got {options.rows}")
    needed = sorted({cell.data for cell in wanted} - {"synthetic"})
    if needed and not options.report_only:
        if options.data is None:
            raise ValueError(f"--data: expected the folder that holds {', '.join(needed)}, got none")
        missing = [name for name in needed if not (options.data / name).is_dir()]
        if missing:
            raise ValueError(f"--data {options.data}: expected a folder {missing[0]!r} in it, found none")
    data = options.data if options.data is not None else Path()
    workspace = Workspace(data.resolve(), options.out.resolve())
    for cell in wanted:
        check(cell, workspace)
    return workspace, wanted


def _is_named(name: str, wanted: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted


def _run(wanted: list[Cell], workspace: Workspace) -> int:
    """Run the cells that are not done and that no other process is at; returns how many failed.

    A cell whose start another process is training comes later, after those that need not wait.
    """
    failed, waiting = 0, dict(enumerate(wanted, 1))
    while waiting:
        for number, cell in list(waiting.items()):
            if workspace.waits_for_start(cell):
                continue
            del waiting[number]
            with workspace.lock(workspace.record_path(cell), wait=False) as mine:
                if mine and not workspace.record_path(cell).exists():
                    failed += not _run_one(cell, workspace, f"[{number}/{len(wanted)}]")
        time.sleep(1 if waiting else 0)
    return failed


def _run_one(cell: Cell, workspace: Workspace, number: str) -> bool:
    """Run a cell and keep its record; returns whether it did not fail."""
    name = f"{number} {cell.data}, {cell.row.name}, seed {cell.seed}"
    try:
        record = run_cell(cell, workspace)
    except Exception:  # the other cells are worth having all the same
        print(f"{name}: FAILED\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return False
    write_records([record], workspace.record_path(cell))
    shown = ", ".join(f"{figure} {value:.4f}" for figure, value in record.values.items() if _is_shown(figure))
    print(f"{name}: {record.seconds:.0f} s  {shown}", file=sys.stderr, flush=True)
    return True


def _is_shown(figure: str) -> bool:
    return figure.startswith("test recall") and is_per_user(figure)


def _run_side_by_side(arguments: list[str], jobs: int) -> int:
    """The same command in `jobs` processes, which share the cells out among themselves."""
    command = [sys.executable, "-m", "experiments.run", *arguments, "--jobs", "1", "--no-report"]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(jobs)]
    return sum(worker.wait() != 0 for worker in workers)


def _keep(table: Table, wanted: list[Cell], workspace: Workspace, kept: Path) -> None:
    """Merge the finished ones of the cells into the table's file, which keeps its other seeds, rows and data sets.

    Seeds of a row that were run with other options than these now are no seeds of it any more, and are left out. So are
    training curves: three quarters of a table's bytes, which the cells' own records go on to hold.
    """
    paths = [workspace.record_path(cell) for cell in wanted]
    new = {record.key: record for path in paths if path.exists() for record in read_records(path)}
    if not new:
        return
    options = {(record.data, record.row): _options_of(record) for record in new.values()}
    merged = dict(new)
    for record in read_records(kept) if kept.exists() else []:
        own = _options_of(record)
        if options.get((record.data, record.row), own) == own:
            merged.setdefault(record.key, record)
        elif record.key not in new:
            print(f"left out, as its options were others: {record.data}, {record.row}, seed {record.seed}")
    write_records([_without_curves(record, table) for record in merged.values()], kept)


def _without_curves(record: Record, table: Table) -> Record:
    """A record with those series alone that figures of its table draw; one of theory, which trained nothing, whole."""
    if not record.ranks:
        return record
    drawn = {name for entry in table.figures for name in (entry.get("series"), entry.get("x"))}
    return dataclasses.replace(record, series={name: one for name, one in record.series.items() if name in drawn})


def _options_of(record: Record) -> dict[str, Any]:
    """A record's settings without what differs between its seeds and machines.

    An option that did not exist when the record was made is at its default, one that is none any more was at what it is
    now: neither changes anything.
    """
    known = merge(dataclasses.asdict(Config()), without_retired(record.settings))
    # Older records have a boolean here, which the section reads as yes or no.
    known["evaluation"] = dataclasses.asdict(EvaluationConfig(**known["evaluation"]))
    for kind in known.keys() & MODELS.keys():
        known[kind] = dataclasses.asdict(SequenceModelOptions(**known[kind]))
    return {name: value for name, value in known.items() if name not in ("seed", "data", "data_cache")}


if __name__ == "__main__":
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(sys.argv[1:]))
