"""FLOPs are those of the products with the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tawin.catalog.catalog import Catalog
from tawin.dry_run.plan import make_plan
from tawin.dry_run.work import flops_a_second, work_of
from tawin.model.policy import load_model
from tawin.serve.load import load_data

from ..runs import SMALL, make_run


def test_a_sequence_of_sft_is_a_forward_and_twice_that_backward(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog, model = Catalog.load(run.catalog), load_model(run.checkpoints / "sft")
    plan = make_plan(catalog, load_data(SMALL)[1], SMALL)
    tokens = round(plan.sft.tokens / plan.sft.sequences)
    plan = dataclasses.replace(plan, sft=dataclasses.replace(plan.sft, tokens=tokens * plan.sft.sequences))
    with FlopCounterMode(display=False) as counted:
        model(torch.ones(1, tokens, dtype=torch.int64)).logits.sum().backward()
    attention = sum(
        flops
        for name, flops in counted.get_flop_counts()["Global"].items()
        if "attention" in str(name) or "bmm" in str(name)
    )
    expected = counted.get_total_flops() - attention
    assert work_of(model, catalog, plan, SMALL).sft_sequence == pytest.approx(expected, rel=0.05)


def test_more_beams_and_hits_are_more_work(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    catalog, model = Catalog.load(run.catalog), load_model(run.checkpoints / "sft")
    plan = make_plan(catalog, load_data(SMALL)[1], SMALL)
    work = work_of(model, catalog, plan, SMALL)
    assert work.grpo_prompt_with_hit > work.grpo_prompt_without_hit > 0
    narrow = dataclasses.replace(SMALL, evaluation=dataclasses.replace(SMALL.evaluation, beam_width=10))
    wide = dataclasses.replace(SMALL, evaluation=dataclasses.replace(SMALL.evaluation, beam_width=20))
    assert work_of(model, catalog, plan, wide).evaluated_user > work_of(model, catalog, plan, narrow).evaluated_user


def test_the_speed_of_products_is_measured() -> None:
    model = torch.nn.Linear(64, 96)
    assert flops_a_second(model, torch.device("cpu"), bf16=False) > 1e6
