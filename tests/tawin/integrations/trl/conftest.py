"""What every test of TRL leaves behind for the files after it: nothing."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_precision_is_left_behind() -> Iterator[None]:
    """accelerate keeps its first precision for the whole process, other files' tests too."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
