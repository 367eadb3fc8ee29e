"""The two loops: data order, the reference of the KL term, and that training does what it is for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tawin.checkpoint import Progress
from tawin.config import PRESETS, Config, GRPOConfig, PolicyConfig, SyntheticConfig
from tawin.data import Examples, Split
from tawin.objective import Groups, completion_log_probs
from tawin.optimization import Stage
from tawin.phases import phase_seconds
from tawin.policy import add_lora
from tawin.run_folder import RunFolder
from tawin.tokenizer import make_semantic_tokenizer
from tawin.trainer import _epoch_batches, _prompt_rows, _reference, grpo_backward, grpo_step, train_grpo

from .models import tiny_model
from .test_objective import rolled_out, small_catalog


def test_an_epoch_holds_every_row_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 12, 1000)
    batches = list(_epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = np.mean([np.ptp(lengths[rows]) for rows in batches])
    assert spread < 1.5  # random batches of eight spread over some eight lengths
    again = list(_epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    other = np.concatenate(list(_epoch_batches(lengths, 8, np.random.default_rng(2))))
    assert not np.array_equal(np.concatenate(batches), other)


def test_prompts_come_in_shuffled_epochs_without_a_gap() -> None:
    rows = np.concatenate([_prompt_rows(10, 3, batch, 4) for batch in range(10)])
    for epoch in range(4):
        assert sorted(rows[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert not np.array_equal(rows[:10], rows[10:20])


def stage_of(model: torch.nn.Module, tmp_path: Path) -> Stage:
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    run = RunFolder.create(tmp_path / "run", Config())
    return Stage.start("grpo", Accelerator(cpu=True), model, tokenizer, GRPOConfig(), 10, run)


def test_the_reference_of_a_lora_policy_is_the_model_it_started_from_without_dropout(tmp_path: Path) -> None:
    _, groups = rolled_out(GRPOConfig(group_size=4), [0, 1, 2])
    model = tiny_model("qwen2", attention_dropout=0.5)
    start = completion_log_probs(model, groups)
    policy = add_lora(model, PolicyConfig(lora_rank=2), [5, 6])
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    stage = stage_of(policy, tmp_path)
    stage.model.train()
    torch.testing.assert_close(_reference(stage, None)(groups), start)
    assert stage.model.training
    stage.model.eval()
    assert not torch.allclose(completion_log_probs(stage.model, groups), start, atol=1e-2)


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


@pytest.mark.parametrize("beta", [0.0, 0.01])
def test_grpo_raises_the_reward_on_prompts_it_can_learn(beta: float, tmp_path: Path) -> None:
    catalog = small_catalog()
    histories = [np.array([item]) for item in range(7)]
    targets = np.array([(item + 1) % 7 for item in range(7)])  # item i is followed by item i + 1
    prompts = Examples(np.arange(7), histories, targets)
    split = Split(sft=[], rl=prompts, valid=prompts, test=prompts)
    config = dataclasses.replace(
        PRESETS["demo"],
        grpo=GRPOConfig(learning_rate=1e-2, steps=40, batch_size=7, group_size=4, beta=beta, evaluate_every=40),
        synthetic=SyntheticConfig(),
    )
    run = RunFolder.create(tmp_path / "run", config)
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    model = tiny_model("qwen2", seed=1)
    reference = tiny_model("qwen2", seed=1) if beta > 0 else None
    progress = train_grpo(Accelerator(cpu=True), model, reference, tokenizer, catalog, split, config, run)
    assert isinstance(progress, Progress) and progress.finished and progress.step == 40
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    rewards = [line["reward"] for line in map(json.loads, lines) if "reward" in line]
    curve = [line["valid"]["recall@1"] for line in map(json.loads, lines) if "valid" in line]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5])
    assert curve[-1] > curve[0]


def test_the_random_numbers_of_a_step_are_a_function_of_its_number_alone(tmp_path: Path) -> None:
    stage = stage_of(tiny_model("qwen2"), tmp_path)
    drawn = []
    for step in (0, 1, 0):
        stage.progress = dataclasses.replace(stage.progress, step=step)
        stage.seed(7)
        drawn.append(torch.rand(5))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_a_step_is_a_backward_pass_over_its_batch_and_an_update(tmp_path: Path) -> None:
    stage, catalog = stage_of(tiny_model("qwen2", seed=1), tmp_path), small_catalog()
    prompts = Examples(np.arange(7), [np.array([item]) for item in range(7)], np.arange(7))
    config = Config(grpo=GRPOConfig(batch_size=2, gradient_accumulation=2, group_size=4))
    chosen = prompts.take(_prompt_rows(7, config.seed, 0, 4))
    with phase_seconds() as seconds:
        figures = grpo_backward(stage, catalog, chosen, config, None)
        assert any(p.grad is not None and bool(p.grad.any()) for p in stage.model.parameters())
        stage.engine.zero_grad()
        step = grpo_step(stage, catalog, prompts, config, None)
    assert step == {**figures, "grad_norm": step["grad_norm"], "learning_rate": step["learning_rate"]}
    assert 0 < figures["live_share"] <= figures["hit_share"]
    assert stage.progress.step == 1
    assert all(seconds[name] > 0 for name in ("decode", "policy_forward", "loss", "backward", "optimizer"))


def test_groups_stay_on_the_prompts_they_were_rolled_out_for() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=4), [0, 1, 2])
    taken = groups.take(torch.tensor([2, 0]))
    assert isinstance(taken, Groups)
    assert torch.equal(taken.rewards, groups.rewards[[2, 0]])
    assert torch.equal(taken.token_ids, groups.token_ids[[2, 0]])
