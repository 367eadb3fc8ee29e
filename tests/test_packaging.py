"""What the wheel and the sdist hold."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import tawin

pytest.importorskip("hatchling")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-d", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def names(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    (wheel,) = built.glob("*.whl")
    text = zipfile.ZipFile(wheel).read(f"tawin-{tawin.__version__}.dist-info/METADATA")
    return email.message_from_bytes(text)


def test_the_wheel_has_both_packages_typed_and_nothing_else(names: set[str]) -> None:
    assert {"tawin/py.typed", "tawin_kernels/py.typed", "tawin/cli/train.py"} <= names
    assert {name.split("/")[0] for name in names} == {"tawin", "tawin_kernels", f"tawin-{tawin.__version__}.dist-info"}
    assert not [name for name in names if name.endswith("ruff.toml")]


def test_the_sdist_is_below_2_mb_and_has_what_its_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.stat().st_size < 2_000_000
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "train.py", "LICENSE", "tests/conftest.py"} <= files
    assert {"bench/peers/__init__.py", "experiments/run.py"} <= files
    assert not [file for file in files if file.startswith(("experiments/results", "bench/results"))]


def test_no_dependency_has_an_upper_bound(metadata: Message) -> None:
    needs = metadata.get_all("Requires-Dist") or []
    assert {"torch>=2.11", "triton>=3.6"} <= set(needs)
    assert not [need for need in needs if "<" in need.split(";")[0]]
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_description_has_no_link_that_an_index_cannot_follow(metadata: Message) -> None:
    text = str(metadata.get_payload())
    assert text.startswith("# tawin")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith(("https://", "#")) for target in targets), targets
