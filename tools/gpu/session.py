"""A pytest plugin of GPU runs: every test and benchmark is written down when it ends, and every compilation.

`pytest -p tools.gpu.session --lines FILE [--points NAME ...]`: a run that is cut off leaves what it had. FILE gets a
line of JSON for each test, each benchmark and each kernel that Triton compiled because it was in no cache. --points:
only benchmarks of these shapes; what torch.compile has to compile first comes after all else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from triton import knobs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lines", metavar="FILE", help="append a line of JSON for each test, benchmark, compilation")
    parser.addoption("--points", action="append", metavar="NAME", help="only benchmarks of this shape (repeatable)")


def pytest_configure(config: pytest.Config) -> None:
    if file := config.getoption("--lines"):
        tell_compilations(Path(file))
        if not hasattr(config, "workerinput"):  # what processes of pytest-xdist report comes together in the first
            config.pluginmanager.register(_Outcomes(Path(file)))


@dataclass(frozen=True, eq=False)
class _Outcomes:
    file: Path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            what = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            append(self.file, what)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (points := config.getoption("--points")) is None:
        return
    chosen = [item for item in items if isinstance(item, pytest.Function) and item.callspec.params["name"] in points]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = sorted(chosen, key=lambda item: "compiled" in item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """After the test, before what it leaves is cleared away."""
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    file = item.config.getoption("--lines")
    if file and call.when == "call" and call.excinfo is None and benchmark is not None and benchmark.stats:
        append(Path(file), {"benchmark": benchmark.stats.as_dict(include_data=False)})
    return (yield)


def tell_compilations(file: Path | None) -> None:
    """From now on each compilation of this process is a line of the file, or of the output."""

    def listener(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            append(file, {"compiled": src.name, "seconds": round(times.total / 1e6, 2)})

    knobs.compilation.listener = listener


def append(file: Path | None, what: dict[str, Any]) -> None:
    line = json.dumps(what, default=str)
    if file is None:
        print(line, flush=True)
    else:
        with file.open("a") as lines:
            lines.write(line + "\n")


def lines_of(text: str, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind, "test", "benchmark", "check" or "compiled", among whatever else was printed."""
    start = json.dumps({kind: 0})[:-2]
    return [json.loads(line) for line in text.splitlines() if line.startswith(start)]
