"""Launches: run, recorded without running, nothing for an empty grid."""

from __future__ import annotations

import pytest
import torch
from tawin_kernels.launch import Launch, Target, launch, multiprocessors, recorded_launches, target_of
from tawin_kernels.ops.log_prob.logsumexp import live_rows, live_rows_kernel

from .devices import DEVICE


def test_inside_a_recording_nothing_runs_and_launches_are_noted_as_they_were_asked_for():
    meta = torch.zeros(5, dtype=torch.bool, device="meta")
    with recorded_launches(Target("hip", "gfx942")) as launches:
        assert target_of(meta.device) == Target("hip", "gfx942")
        assert multiprocessors(meta.device) > 1
        live_rows(meta)
    (recorded,) = launches
    assert isinstance(recorded, Launch)
    assert recorded.kernel is live_rows_kernel
    assert recorded.grid == (1,)
    assert recorded.arguments["is_live_ptr"] is meta
    assert recorded.arguments["R"] == 5
    assert live_rows(torch.ones(1, dtype=torch.bool, device=DEVICE))[1].item() == 1  # and after it launches run again


def test_a_recording_ends_with_an_error_inside_it():
    with pytest.raises(KeyError), recorded_launches(Target("cuda", "80")):
        raise KeyError
    assert live_rows(torch.ones(2, dtype=torch.bool, device=DEVICE))[1].item() == 2


def test_an_empty_grid_is_no_launch():
    with recorded_launches(Target("cuda", "80")) as launches:
        launch(live_rows_kernel, (3, 0), is_live_ptr=None)
    assert launches == []


@pytest.mark.parametrize(
    ("arch", "kilobytes"), [("80", 163), ("86", 99), ("89", 99), ("90", 227), ("100", 227), ("120", 99)]
)
def test_shared_memory_is_that_of_the_architecture(arch, kilobytes):
    assert Target("cuda", arch).shared_memory == kilobytes * 1024


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_kernel_runs_where_its_tensors_are():
    row_ids, num_rows = live_rows(torch.ones(3, dtype=torch.bool, device="cuda:1"))
    assert row_ids.tolist() == [0, 1, 2]
    assert num_rows.item() == 3


def test_a_bound_on_registers_is_for_nvidia_alone():
    asked = Launch(live_rows_kernel, (1,), {}, num_warps=2, num_stages=3, max_registers=128)
    assert asked.options(on_nvidia=True) == {
        "num_warps": 2,
        "num_stages": 3,
        "enable_fp_fusion": False,
        "maxnreg": 128,
    }
    assert asked.options(on_nvidia=False) == {"num_warps": 2, "num_stages": 3, "enable_fp_fusion": False}
    assert "maxnreg" not in Launch(live_rows_kernel, (1,), {}, 2, 3).options(on_nvidia=True)
