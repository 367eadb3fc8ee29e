"""Settings of the whole suite.

Without a GPU, kernels are tested through Triton's interpreter, which has to be chosen before Triton is imported. It is
switched off again right after, so that "auto" means the reference ops on the CPU; tests of kernels say impl="triton".
Whoever sets TRITON_INTERPRET=1 runs all tests on the kernels, the trainer's too. With --compiled sm_90 kernels are
compiled for that GPU and run by tools.ptx_machine instead.
"""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch

SLOW = (
    "bench",
    "tools/compiled/test_report.py",
    "tools/faults",
    "tools/fuzz",
    "tools/gpu",
    "tools/ptx_machine/test_switch.py",
    "tools/test_family_sweep.py",
    "tools/test_confident_tokens.py",
)
"""Tests of benchmarks and tools of their own; what they are tools for has tests of its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compiled",
        metavar="TARGET",
        help="run the tests of kernels as compiled for sm_80, sm_90 or sm_100, on the CPU (tools.ptx_machine)",
    )
    parser.addoption(
        "--thorough", action="store_true", help="tests of kernels with all their random examples, as .ci/nightly has it"
    )
    parser.addoption(
        "--few-examples", action="store_true", help="of the tests of kernels those that launch some, few examples each"
    )


def pytest_configure(config: pytest.Config) -> None:
    """How kernels run is settled before anything imports them."""
    if target := config.getoption("--compiled"):
        from tools.ptx_machine.switch import switch_on

        switch_on(target)
    elif not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
        make_interpreted_kernels()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole folders of long suites are slow: `-m slow` runs them, as .ci/nightly does."""
    here = Path(__file__).parent
    folders = [here / folder for folder in SLOW]
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker("slow")


def make_interpreted_kernels() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from tawin_kernels.ops.log_prob.logsumexp import live_rows

    try:
        live_rows(torch.ones(1, dtype=torch.bool))  # the first launch imports more of Triton, which looks again
    except Exception:
        import triton

        if triton.__version__ < "3.7" and numpy.__version__ >= "2.4":
            pytest.exit("Triton 3.6's interpreter needs a numpy before 2.4: pip install 'numpy<2.4'", 1)
        raise
    del os.environ["TRITON_INTERPRET"]


# A suite that was started in the background has Ctrl-C ignored, and so would be what tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test fails for being slow on a busy machine, and small shapes run on one thread.
hypothesis.settings.register_profile("tawin", deadline=None)
hypothesis.settings.load_profile("tawin")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def no_report() -> Iterator[None]:
    """Training draws no report: that takes three quarters of the time of runs as small as those of tests."""
    from tawin.train import pipeline

    with pytest.MonkeyPatch.context() as without:
        without.setattr(pipeline, "write_report", lambda _, out: out / "report.html")
        yield


@pytest.fixture
def limit_files() -> Callable[[int], AbstractContextManager[None]]:
    """Given a size in bytes: within it writing a larger file fails, as on a full disk.

    Not until the test ends: pytest says before that how it went, into a file perhaps.
    """

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited
