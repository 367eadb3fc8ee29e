"""One update of a stage: what stops it, and what it does without a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.config import Config, GRPOConfig
from tawin.run.folder import RunFolder
from tawin.train.engine import Stage

from ..models import tiny_model


def stage_of(model: torch.nn.Module, tmp_path: Path) -> Stage:
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    run = RunFolder.create(tmp_path / "run", Config())
    return Stage.start("grpo", Accelerator(cpu=True), model, tokenizer, GRPOConfig(), 10, run)


def test_a_gradient_that_is_not_finite_stops_training_before_it_is_applied(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage = stage_of(model, tmp_path)
    before = [p.detach().clone() for p in model.parameters()]
    next(iter(model.parameters())).grad = torch.full_like(next(iter(model.parameters())), torch.nan)
    with pytest.raises(FloatingPointError, match="grpo: the gradient norm is nan at step 1"):
        stage.update()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_step_whose_groups_are_all_dead_moves_the_weights_by_momentum_alone(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage = stage_of(model, tmp_path)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    stage.update()
    stage.scheduler.step()  # past the warm-up's rate of zero
    before = [p.detach().clone() for p in model.parameters()]
    stage.update()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
