"""The names of `tawin` itself are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tawin


def test_every_name_is_there():
    assert set(tawin.__all__) <= set(dir(tawin))
    for name in tawin.__all__:
        assert getattr(tawin, name).__name__.removeprefix("tawin.") == name


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tawin' has no attribute 'no_such_name'"):
        _ = tawin.no_such_name


def test_importing_tawin_loads_none_of_the_trainers_dependencies():
    script = f"import sys; sys.path[:0] = {sys.path!r}; import tawin; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "tawin" in modules
    assert not {"torch", "transformers", "numpy", "pyarrow", "tawin.catalog.catalog"} & set(modules)
