"""A GPU run without a GPU: kernels run as compiled for sm_90 (tools.ptx_machine), benchmarks at tiny shapes.

`pytest -p tools.gpu.rehearsal bench/bench_log_prob.py`: the names of the shapes are the GPU's. What it times means
nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.cases import beam, loss
from bench.step import cases as step

from ..ptx_machine.switch import switch_on

TARGET = "sm_90"


def pytest_configure() -> None:
    switch_on(TARGET, by_itself=True)
    _shrink(loss.CPU_SHAPES, loss.GPU_SHAPES, _tiny_loss)
    _shrink(beam.CPU_SHAPES, beam.GPU_SHAPES, _tiny_step)
    _shrink(step.CPU_SETTINGS, step.GPU_SETTINGS, _tiny_setting)


def _shrink(shapes: dict[str, Any], of_gpu: dict[str, Any], tiny: Any) -> None:
    """In place: the suites have the tables already, or will."""
    shapes.clear()
    shapes.update({name: tiny(shape) for name, shape in of_gpu.items()})


def _tiny_loss(shape: loss.LossShape) -> loss.LossShape:
    return replace(shape, tokens=128, hidden_size=64, vocabulary=300)


def _tiny_step(shape: beam.StepShape) -> beam.StepShape:
    beams = min(shape.beams, 4)
    return replace(shape, prompts=2, beams=beams, beam_width=4, items=300, hidden_size=64, text_tokens=100)


def _tiny_setting(setting: step.StepSetting) -> step.StepSetting:
    """One layer, a small vocabulary, four prompts."""
    model = step.PolicyShape(text_tokens=300, hidden_size=64, layers=1, heads=2, intermediate_size=64)
    return replace(setting, model=model, prompts=4, instruction=5, history=3, group_size=4, titles=100)
