"""A pytest plugin: `pytest -p tools.gpu.stop_after --stop-after SECONDS` begins no test after so long.

So what was measured by then is written, which an interrupt in the middle of a benchmark would lose. The exit status is
2, pytest's for a session that was stopped.
"""

from __future__ import annotations

import time

import pytest

_begin = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stop-after", type=float, default=None, metavar="SECONDS", help="begin no test after so long")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    limit = item.config.getoption("--stop-after")
    if limit is not None and time.monotonic() - _begin > limit:
        item.session.shouldstop = f"out of time: {limit:g} s are over"
