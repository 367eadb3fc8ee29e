"""What is not finite stops or skips a step, with a report that names it, and never reaches weights or checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.cli import train
from tawin.config import Config, GRPOConfig, GuardConfig, SFTConfig
from tawin.data.dataset import Examples, Split
from tawin.data.ragged import Ragged
from tawin.rl import step as grpo
from tawin.rl.step import grpo_step, prompt_rows
from tawin.run.folder import RunFolder
from tawin.run.guards import Finding, NonFiniteError, merged, nonfinite
from tawin.run.states import states
from tawin.train.checkpoint import read_progress
from tawin.train.engine import Stage
from tawin.train.sft import train_sft

from ...small_runs import SMALL
from ..models import tiny_model
from ..small_groups import small_catalog

SKIP = GuardConfig(nonfinite="skip", max_skips=2)


def stage_of(model: torch.nn.Module, folder: Path, guards: GuardConfig = GuardConfig()) -> Stage:  # noqa: B008
    run = RunFolder.create(folder / "run", Config())
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    return Stage.start("grpo", Accelerator(cpu=True), model, tokenizer, GRPOConfig(), 10, run, guards)


def report_of(stage: Stage, step: int) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (stage.run.path / f"nonfinite-{stage.progress.stage}-step-{step}.json").read_text()
    return json.loads(text, parse_constant=refuse)


def fill_gradients(model: torch.nn.Module, value: float, only: str | None = None) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, value if only in (None, name) else 1.0)


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def are_weights(model: torch.nn.Module, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_is_named_and_changes_no_weight(value: float, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage, before = stage_of(model, tmp_path), weights_of(model)
    fill_gradients(model, value, only="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        NonFiniteError, match=r"grpo: the gradient norm is (nan|inf) at step 1; first in gradient of model.layers.1"
    ):
        stage.update()
    assert are_weights(model, before)
    report = report_of(stage, 1)
    assert report["found"] == [
        {
            "tensor": "gradient of model.layers.1.mlp.up_proj.weight",
            "values": 32 * 48,
            "users": [],
            "windows": [],
        }
    ]
    assert (report["stage"], report["step"], report["action"], report["note"]) == ("grpo", 1, "stopped", None)


def test_a_norm_that_overflows_from_finite_gradients_is_said_to(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage, before = stage_of(model, tmp_path), weights_of(model)
    fill_gradients(model, 1e30)  # the square overflows fp32
    with pytest.raises(NonFiniteError, match="the gradient norm is inf"):
        stage.update()
    assert are_weights(model, before)
    assert report_of(stage, 1)["found"] == []
    assert "overflowed" in report_of(stage, 1)["note"]


def test_a_loss_that_is_not_finite_stops_though_the_gradients_are(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage, before = stage_of(model, tmp_path), weights_of(model)
    fill_gradients(model, 1.0)
    with pytest.raises(NonFiniteError, match="the loss is nan at step 1"):
        stage.update(figures={"loss": torch.nan, "KL": 0.0})
    assert are_weights(model, before)
    assert report_of(stage, 1)["figures"] == {"loss": "nan"}


def test_a_skipped_step_is_counted_logged_and_changes_no_weight(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage, before = stage_of(model, tmp_path, SKIP), weights_of(model)
    fill_gradients(model, torch.nan)
    norm = stage.update()
    assert np.isnan(norm) and are_weights(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    stage.log(loss=torch.nan, reward=0.5, grad_norm=norm)
    (line,) = (json.loads(text) for text in (stage.run.path / "metrics.jsonl").read_text().splitlines())
    del line["seconds"]
    assert line == {"stage": "grpo", "step": 1, "reward": 0.5, "skipped_steps": 1}
    assert report_of(stage, 1)["action"] == "skipped"


def test_skips_in_a_row_are_bounded_and_an_update_starts_the_count_anew(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    stage = stage_of(model, tmp_path, SKIP)
    for value in (torch.nan, torch.nan, 1.0, torch.nan, torch.nan):
        fill_gradients(model, value)
        stage.update()
    assert (stage.progress.step, stage.progress.skipped_steps, stage.progress.skipped_in_a_row) == (5, 4, 2)
    fill_gradients(model, torch.nan)
    with pytest.raises(NonFiniteError, match="the 2 steps before it were skipped"):
        stage.update()


def test_the_schedule_goes_on_over_a_skipped_step(tmp_path: Path) -> None:
    rates = []
    for number, value in enumerate((1.0, torch.nan)):
        model = tiny_model("qwen2")
        stage = stage_of(model, tmp_path / str(number), SKIP)
        fill_gradients(model, value)
        stage.update()
        rates.append(stage.scheduler.get_last_lr())
    assert rates[0] == rates[1]


def prompts() -> Examples:
    """Of seven users, 100 to 106: user 100 + i has item i as history."""
    return Examples(np.arange(100, 107), [np.array([item]) for item in range(7)], np.arange(7))


def broken_for_item_5() -> torch.nn.Module:
    """A policy to which token 13, which item 5 alone begins with, is NaN."""
    model = tiny_model("qwen2", seed=1)
    with torch.no_grad():
        model.get_input_embeddings().weight[13] = torch.nan
    return model


def test_scores_that_are_missing_name_the_user_whose_prompt_is_not_finite(tmp_path: Path) -> None:
    model = broken_for_item_5()
    stage, before = stage_of(model, tmp_path), weights_of(model)
    config = Config(grpo=GRPOConfig(batch_size=7, group_size=4))
    with pytest.raises(NonFiniteError, match=r"the sum of rewards and scores is nan at step 1; first in weight of"):
        grpo_step(stage, small_catalog(), prompts(), config, None)
    assert all(
        torch.equal(p.nan_to_num(0.0), old.nan_to_num(0.0)) for p, old in zip(model.parameters(), before, strict=True)
    )
    found = {one["tensor"]: one for one in report_of(stage, 1)["found"]}
    assert found["weight of model.embed_tokens.weight"]["values"] == 32
    assert found["hidden"]["users"] == [105]


@pytest.mark.parametrize("negatives", ["beam", "sample", "random"])
def test_a_rollout_is_checked_whatever_its_completions_come_from(negatives: str, tmp_path: Path) -> None:
    stage = stage_of(broken_for_item_5(), tmp_path, SKIP)
    config = Config(
        grpo=GRPOConfig(batch_size=7, group_size=4, negatives=negatives, ensure_positive=negatives == "random")
    )
    figures = grpo_step(stage, small_catalog(), prompts(), config, None)
    assert stage.progress.skipped_steps == stage.progress.step == 1
    assert "loss" not in figures
    assert 105 in next(one for one in report_of(stage, 1)["found"] if one["tensor"] == "hidden")["users"]


def test_completions_that_a_small_catalogue_lacks_are_no_fault(tmp_path: Path) -> None:
    stage = stage_of(tiny_model("qwen2", seed=1), tmp_path)
    config = Config(grpo=GRPOConfig(batch_size=7, group_size=9))  # of six sequences
    assert "loss" in grpo_step(stage, small_catalog(), prompts(), config, None)


def poisoned(name: str, value: float) -> Callable[..., Any]:
    """`roll_out`, but for one value of the group of the third prompt of a batch."""
    roll_out = grpo.roll_out

    def poison(*arguments: Any, **options: Any) -> Any:
        groups = roll_out(*arguments, **options)
        getattr(groups, name)[2, 1] = value
        return groups

    return poison


@pytest.mark.parametrize(("name", "value"), [("rewards", torch.nan), ("rewards", torch.inf), ("scores", torch.nan)])
def test_a_reward_or_score_that_is_not_finite_is_named_with_its_user(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tiny_model("qwen2", seed=1), tmp_path)
    monkeypatch.setattr(grpo, "roll_out", poisoned(name, value))
    user = 100 + prompt_rows(7, seed=0, batch=0, size=7)[2]
    with pytest.raises(NonFiniteError, match=rf"first in {name} \(1 values, users {user}\)"):
        grpo_step(stage, small_catalog(), prompts(), Config(grpo=GRPOConfig(batch_size=7, group_size=4)), None)


def test_a_reference_that_is_not_finite_is_named_with_its_users(tmp_path: Path) -> None:
    stage = stage_of(tiny_model("qwen2", seed=1), tmp_path)
    config = Config(grpo=GRPOConfig(batch_size=7, group_size=4, beta=0.1))

    def reference(groups: Any) -> torch.Tensor:
        log_probs = torch.zeros(groups.token_ids.shape)
        log_probs[groups.users == 104] = torch.nan
        return log_probs

    expected = "grpo: the loss is nan and the KL is nan and the gradient norm is nan at step 1; first in ref_log_probs"
    with pytest.raises(NonFiniteError, match=expected):
        grpo_step(stage, small_catalog(), prompts(), config, reference)
    found, *others = report_of(stage, 1)["found"]
    assert all(other["tensor"].startswith("gradient of ") for other in others)
    assert found["tensor"] == "ref_log_probs" and found["users"] == [104]


def test_a_skip_ends_all_updates_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(tiny_model("qwen2", seed=1), tmp_path, SKIP)
    group_loss, calls = grpo.group_loss, []

    def wrong_in_the_second(*arguments: Any) -> Any:
        calls.append(1)
        result = group_loss(*arguments)
        return result._replace(loss=result.loss * torch.nan) if len(calls) == 2 else result

    monkeypatch.setattr(grpo, "group_loss", wrong_in_the_second)
    config = Config(grpo=GRPOConfig(batch_size=7, group_size=4, updates=4))
    grpo_step(stage, small_catalog(), prompts(), config, None)
    assert len(calls) == 2
    assert (stage.progress.step, stage.progress.skipped_steps) == (1, 1)


def test_sft_names_the_windows_that_are_not_finite(tmp_path: Path) -> None:
    config = Config(sft=SFTConfig(batch_size=4, epochs=1))
    run = RunFolder.create(tmp_path / "run", config)
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    sequences = Ragged.of([np.array(items) for items in ([0, 1], [5, 2], [3, 6], [2, 5, 1])])  # 5 is broken, twice
    split = Split(sft=sequences, rl=prompts(), valid=prompts(), test=prompts())
    with pytest.raises(NonFiniteError, match="sft: the loss is nan"):
        train_sft(Accelerator(cpu=True), broken_for_item_5(), tokenizer, small_catalog(), split, config, run)
    report = json.loads((run.path / "nonfinite-sft-step-1.json").read_text())
    assert next(one for one in report["found"] if one["tensor"] == "hidden")["windows"] == [1, 3]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The gradients of such an update are finite; only what it makes is not."""
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        train.main([*SMALL, "--out", str(out), "--grpo.learning-rate=1e39", "--grpo.schedule=constant"])
    assert caught.value.code == 1
    for name in ("sft", "grpo"):  # GRPO's is the SFT start
        tensors = load_file(out / "checkpoints" / name / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    state = load_file(states(out / "checkpoints")[-1] / "weights.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_a_run_that_was_stopped_goes_on_with_skips_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    group_loss, seed_step = grpo.group_loss, Stage.seed
    at = [0]  # the step that is being taken

    def noted(stage: Stage, seed: int) -> None:
        at[0] = stage.progress.step + 1
        seed_step(stage, seed)

    def wrong_in_step_4(*arguments: Any) -> Any:
        result = group_loss(*arguments)
        return result._replace(loss=result.loss * torch.nan) if at[0] == 4 else result

    monkeypatch.setattr(Stage, "seed", noted)
    monkeypatch.setattr(grpo, "group_loss", wrong_in_step_4)
    options = ["--grpo.steps=6", "--grpo.batch-size=16", "--out", str(out)]
    with pytest.raises(SystemExit) as caught:
        train.main([*SMALL, *options])
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert said.count("error: grpo: the loss is nan") == 1 and "at step 4" in said and "--guards.nonfinite skip" in said
    assert read_progress(states(out / "checkpoints")[-1]).step == 2

    train.main(["--out", str(out), "--resume", "--guards.nonfinite=skip"])
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["stage"] == "grpo" and "valid" not in line}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    assert [steps[step].get("skipped_steps") for step in sorted(steps)] == [None, None, None, 1, 1, 1]
    assert ["loss" in steps[step] for step in sorted(steps)] == [True, True, True, False, True, True]
    assert (out / "report.html").is_file()


def test_figures_that_are_not_finite_are_picked_out() -> None:
    assert list(nonfinite({"a": 1.0, "b": torch.nan, "c": -torch.inf, "d": 1e308})) == ["b", "c"]


def test_what_processes_found_is_put_together_in_the_order_of_a_step() -> None:
    found = merged(
        [
            Finding("gradient of w", 2),
            Finding("hidden", 3, users=(4, 1)),
            Finding("hidden", 1, users=(1, 9)),
            Finding("rewards", 1, users=(4,)),
        ]
    )
    assert found == [
        Finding("rewards", 1, users=(4,)),
        Finding("hidden", 4, users=(1, 4, 9)),
        Finding("gradient of w", 2),
    ]
