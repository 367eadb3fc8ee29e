"""Guarded memory for all tests of kernels: what a kernel does not write shows, and so does what it writes beside.

Every tensor of `torch.empty` and `torch.empty_like` is a piece out of the middle of a longer one. All of it is filled
with NaN, or for integers with a row, edge or key that does not exist: an element that no kernel writes is wrong in the
result. After each test the two ends must be as they were: a kernel that wrote there wrote past its output.
TAWIN_GUARDED_MEMORY=0 switches it off: initcheck (`python -m tools.gpu.sanitize`) wants memory that nobody has written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

FEW_EXAMPLES = 3  # of hypothesis, where kernels run as compiled or minutes are few
SOME_EXAMPLES = 8  # where they run through the interpreter, which takes up to a second for one
MARGIN = 64  # elements at either end: a multiple of what any pointer is aligned to
_MOST_KEPT = 2000

_guarded: list[torch.Tensor] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --compiled or --few-examples: tests that launch kernels, few examples each, the same ones in every run.

    Interpreted they have a share of their examples, and all of them with --thorough.
    """
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    launching = [item for item in ours if hasattr(_module(item), "DEVICE")]
    if config.getoption("--compiled") or config.getoption("--few-examples"):
        others = [item for item in ours if item not in launching]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
        for item in launching:
            _take_examples(item, FEW_EXAMPLES, derandomize=True, database=None)
    elif not config.getoption("--thorough"):
        for item in launching:
            _take_examples(item, SOME_EXAMPLES)


def _take_examples(item: pytest.Item, most: int, **options: Any) -> None:
    """At most so many random examples, which are not shrunk where they fail with so few."""
    test = getattr(item, "obj", None)
    if (chosen := getattr(test, "_hypothesis_internal_use_settings", None)) is not None:
        few = hypothesis.settings(
            chosen,
            max_examples=min(chosen.max_examples, most),
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
            **options,
        )
        vars(test)["_hypothesis_internal_use_settings"] = few


def _module(item: pytest.Item) -> object:
    return getattr(item, "module", None)


def filling(dtype: torch.dtype) -> float | int:
    if dtype.is_floating_point:
        return math.nan
    return True if dtype == torch.bool else min(2**30, torch.iinfo(dtype).max)


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like this new one, between two margins."""
    if tensor.device.type == "meta" or not tensor.is_contiguous() or tensor.dtype.is_complex:
        return tensor
    whole = tensor.new_full((tensor.numel() + 2 * MARGIN,), filling(tensor.dtype))
    if len(_guarded) >= _MOST_KEPT:
        check_margins()
    _guarded.append(whole)
    return whole[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)


def check_margins() -> None:
    """The ends of all guarded tensors so far are untouched; AssertionError otherwise."""
    kept, _guarded[:] = list(_guarded), []
    for whole in kept:
        for end in (whole[:MARGIN], whole[-MARGIN:]):
            expected = filling(whole.dtype)
            is_kept = end.isnan() if whole.dtype.is_floating_point else end == expected
            assert bool(is_kept.all()), f"written beside an output of {len(whole) - 2 * MARGIN} elements: {end}"


@pytest.fixture(autouse=True, scope="package")
def guarded_memory() -> Iterator[None]:
    if os.environ.get("TAWIN_GUARDED_MEMORY") == "0":
        yield
        return
    empty, empty_like = torch.empty, torch.empty_like

    def new(*size: Any, **options: Any) -> torch.Tensor:
        return guarded(empty(*size, **options))

    def new_like(*tensor: Any, **options: Any) -> torch.Tensor:
        return guarded(empty_like(*tensor, **options))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "empty", new)
        monkeypatch.setattr(torch, "empty_like", new_like)
        yield


@pytest.fixture(autouse=True)
def untouched_margins(guarded_memory: None) -> Iterator[None]:
    yield
    check_margins()
