"""The GRPO loop: data order, the reference of the KL term, and that training does what it is for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.config import Config, GRPOConfig, PolicyConfig, SyntheticConfig, TAWinConfig
from tawin.config.presets import PRESETS
from tawin.data.dataset import Examples, Split
from tawin.data.ragged import Ragged
from tawin.model.dropout import add_dropout
from tawin.model.policy import add_lora
from tawin.rl.groups import Groups
from tawin.rl.loss import completion_log_probs
from tawin.rl.step import grpo_backward, grpo_step, prompt_rows, roll_out_own
from tawin.run.folder import RunFolder
from tawin.run.phases import phase_seconds
from tawin.run.processes import Processes
from tawin.train.checkpoint import Progress
from tawin.train.engine import Stage
from tawin.train.grpo import reference_log_probs, train_grpo

from ..models import tiny_model
from ..small_groups import rolled_out, small_catalog


def test_prompts_come_in_shuffled_epochs_without_a_gap() -> None:
    rows = np.concatenate([prompt_rows(10, 3, batch, 4) for batch in range(10)])
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
    torch.testing.assert_close(reference_log_probs(stage, None)(groups), start)
    assert stage.model.training
    stage.model.eval()
    assert not torch.allclose(completion_log_probs(stage.model, groups), start, atol=1e-2)


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_targets_weigh_in_with_their_cross_entropy(accumulation: int, tmp_path: Path) -> None:
    """The gradient is that of the groups plus weight times that of the mean NLL of the targets, by autograd alone."""
    stage, catalog = stage_of(tiny_model("qwen2", seed=1), tmp_path), small_catalog()
    histories = [np.arange(1 + item % 3) for item in range(4)]
    chosen = Examples(np.arange(4), histories, np.array([3, 5, 0, 6]))
    grpo = GRPOConfig(batch_size=4 // accumulation, gradient_accumulation=accumulation, group_size=4)

    def backward(weight: float) -> tuple[dict[str, float], list[torch.Tensor]]:
        stage.engine.zero_grad()
        config = Config(grpo=dataclasses.replace(grpo, nll_weight=weight))
        figures = grpo_backward(stage, catalog, chosen, config, None)
        return figures, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in stage.model.parameters()]

    alone, groups = backward(0.0)
    figures, both = backward(0.5)
    losses, tokens = torch.zeros(()), 0
    for history, target in zip(histories, chosen.targets, strict=True):
        prompt, _ = catalog.encode_histories([history])
        item = catalog.token_ids[target][catalog.token_ids[target] >= 0]
        logits = stage.model(torch.cat([prompt[0], item])[None]).logits[0, len(prompt[0]) - 1 : -1]
        losses, tokens = losses + torch.nn.functional.cross_entropy(logits, item, reduction="sum"), tokens + len(item)
    nll = losses / tokens
    gradients = torch.autograd.grad(nll, list(stage.model.parameters()))
    assert figures["nll"] == pytest.approx(nll.item(), rel=1e-5) and "nll" not in alone
    assert figures["loss"] == pytest.approx(alone["loss"] + 0.5 * nll.item(), rel=1e-5)
    for found, group, target in zip(both, groups, gradients, strict=True):
        torch.testing.assert_close(found, group + 0.5 * target, rtol=1e-4, atol=1e-6)  # fp32, padded differently


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
    chosen = prompts.take(prompt_rows(7, config.seed, 0, 4))
    with phase_seconds() as seconds:
        figures = grpo_backward(stage, catalog, chosen, config, None)
        assert any(p.grad is not None and bool(p.grad.any()) for p in stage.model.parameters())
        stage.engine.zero_grad()
        step = grpo_step(stage, catalog, prompts, config, None)
    assert step == {**figures, "grad_norm": step["grad_norm"], "learning_rate": step["learning_rate"]}
    assert 0 < figures["live_share"] <= figures["hit_share"]
    assert stage.progress.step == 1
    assert all(seconds[name] > 0 for name in ("decode", "policy_forward", "loss", "backward", "optimizer"))


def test_a_moving_anchor_is_that_of_the_step_in_the_loss_and_in_the_log(tmp_path: Path) -> None:
    catalog = small_catalog()
    prompts = Examples(np.arange(7), [np.array([item]) for item in range(7)], np.arange(7))
    moving = TAWinConfig(anchor=0.0, anchor_start=2.0, window=1.0)
    config = Config(grpo=GRPOConfig(batch_size=7, group_size=6, steps=3, evaluate_every=3, tawin=moving))
    stage = stage_of(tiny_model("qwen2", seed=1), tmp_path)

    def gradient(tawin: TAWinConfig) -> torch.Tensor:
        stage.engine.zero_grad()
        grpo_backward(stage, catalog, prompts, Config(grpo=dataclasses.replace(config.grpo, tawin=tawin)), None)
        return torch.cat([p.grad.flatten() for p in stage.model.parameters() if p.grad is not None])

    found = []
    for step, anchor in enumerate([2.0, 1.0, 0.0]):
        stage.progress = dataclasses.replace(stage.progress, step=step)
        found.append(gradient(moving))
        assert torch.equal(found[-1], gradient(TAWinConfig(anchor=anchor, window=1.0)))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])

    split = Split(sft=[], rl=prompts, valid=prompts, test=prompts)
    run = RunFolder.create(tmp_path / "moving", config)
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    train_grpo(Accelerator(cpu=True), tiny_model("qwen2", seed=1), None, tokenizer, catalog, split, config, run)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["anchor"] for line in lines if "reward" in line] == [2.0, 1.0, 0.0]


def test_processes_roll_out_groups_of_several_targets_as_one_does() -> None:
    catalog, model = small_catalog(), tiny_model("qwen2", seed=1)
    also = Ragged.of([np.array(items, dtype=np.int64) for items in ([5, 6], [], [], [0])])
    examples = Examples(np.arange(4), [np.array([item]) for item in range(4)], np.arange(4), also)
    config = GRPOConfig(group_size=6, reward="ranking")  # all six sequences of the catalogue

    def groups(processes: Processes) -> Groups:
        generator = torch.Generator().manual_seed(0)
        return roll_out_own(model, catalog, [examples], config, generator, processes, False)[0]

    parts = [groups(Processes(rank, 2, torch.device("cpu"))) for rank in range(2)]
    whole = groups(Processes(0, 1, torch.device("cpu")))
    assert (whole.rewards == 1).sum(1).tolist() == [3, 1, 1, 2]
    assert torch.equal(torch.cat([part.token_ids for part in parts]), whole.token_ids)
    assert torch.equal(torch.cat([part.hits for part in parts]), whole.hits)
    torch.testing.assert_close(torch.cat([part.rewards for part in parts]), whole.rewards)


def test_groups_stay_on_the_prompts_they_were_rolled_out_for() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=4), [0, 1, 2])
    taken = groups.take(torch.tensor([2, 0]))
    assert isinstance(taken, Groups)
    assert torch.equal(taken.rewards, groups.rewards[[2, 0]])
    assert torch.equal(taken.token_ids, groups.token_ids[[2, 0]])


def stepped(
    tmp_path: Path, *, learning_rate: float = 1e-2, dropout: float = 0.0, **options: Any
) -> tuple[torch.nn.Module, dict[str, float], Stage]:
    """A tiny policy after one GRPO step at a rate that moves it visibly, the step's figures, and its stage."""
    catalog = small_catalog()
    config = Config(grpo=GRPOConfig(learning_rate=learning_rate, batch_size=6, group_size=4, **options))
    model = tiny_model("qwen2")
    if dropout:
        add_dropout(model, dropout)
    stage = Stage.start(
        "grpo",
        Accelerator(cpu=True),
        model,
        make_semantic_tokenizer([f"<a_{i}>" for i in range(37)]),
        dataclasses.replace(config.grpo, warmup_share=0.0),
        10,
        RunFolder.create(tmp_path / "run", config),
    )
    prompts = Examples(np.arange(6), [np.array([0]), np.array([1, 2])] * 3, np.array([0, 1, 2, 0, 1, 2]))
    frozen = tiny_model("qwen2").eval().requires_grad_(False)
    reference = (lambda groups: completion_log_probs(frozen, groups)) if config.grpo.beta else None
    return model, grpo_step(stage, catalog, prompts, config, reference), stage


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_further_updates_on_a_rollout_move_the_policy_on_and_count_as_one_step(beta: float, tmp_path: Path) -> None:
    start = dict(tiny_model("qwen2").named_parameters())
    once, first, stage = stepped(tmp_path / "once", beta=beta)
    thrice, last, stages = stepped(tmp_path / "thrice", beta=beta, updates=3)
    assert stage.progress.step == stages.progress.step == 1
    assert stage.scheduler.get_last_lr() == stages.scheduler.get_last_lr()

    def moved(model: torch.nn.Module) -> float:
        return sum((p - start[name]).detach().square().sum().item() for name, p in model.named_parameters())

    assert moved(thrice) > 2 * moved(once)
    assert {name: last[name] for name in ("reward", "hit_share", "live_share")} == {
        name: first[name] for name in ("reward", "hit_share", "live_share")
    }
    # The ratio is 1 in the first update; at this rate the third leaves the clip range.
    assert first["clip_fraction"] == 0.0 < last["clip_fraction"]


def test_further_updates_drop_what_the_first_one_dropped(tmp_path: Path) -> None:
    # The weights do not move: any ratio other than 1 would be another dropout's.
    _, figures, _ = stepped(tmp_path, learning_rate=1e-12, dropout=0.3, updates=2)
    assert figures["clip_fraction"] == 0.0


def test_token_and_sequence_ratios_differ_from_the_second_update_on(tmp_path: Path) -> None:
    weights = {
        (loss_type, updates): next(
            iter(stepped(tmp_path / f"{loss_type}{updates}", loss_type=loss_type, updates=updates)[0].parameters())
        )
        for loss_type in ("grpo", "gspo")
        for updates in (1, 3)
    }
    # One update: the same gradient in another order of sums, a rounding or two of the fp32 weights apart.
    torch.testing.assert_close(weights["gspo", 1], weights["grpo", 1], rtol=0, atol=1e-5)
    assert not torch.allclose(weights["gspo", 3], weights["grpo", 3], rtol=0, atol=1e-4)
