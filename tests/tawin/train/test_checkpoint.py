"""Checkpoints load with plain from_pretrained, states go on to the bit, and no crash leaves half of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.config import PolicyConfig
from tawin.model.policy import add_lora, load_model
from tawin.run.processes import Processes
from tawin.run.states import state_folder
from tawin.train.checkpoint import Progress, find_state, load_state, read_progress, save_model, save_state

from ..models import tiny_model


@pytest.fixture
def tokenizer():  # type: ignore[no-untyped-def]
    return make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])


def training_setup(model: nn.Module):  # type: ignore[no-untyped-def]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return optimizer, get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=10)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: object, number: int = 0) -> None:
    torch.manual_seed(number)  # as in training, dropout is a function of the step
    model.train()
    model(input_ids=torch.randint(3, 40, (2, 5)), labels=torch.randint(3, 40, (2, 5))).loss.backward()
    optimizer.step()
    scheduler.step()  # type: ignore[attr-defined]
    optimizer.zero_grad()


def test_a_saved_model_loads_with_plain_from_pretrained(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model("qwen2")
    save_model(model, tokenizer, tmp_path / "best")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    input_ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again.eval()(input_ids=input_ids).logits, model(input_ids=input_ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "best").convert_tokens_to_ids("<a_7>") == 10
    assert (tmp_path / "best" / "model.safetensors").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_lora_model_is_saved_merged_and_goes_on_training(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = add_lora(tiny_model("qwen2"), PolicyConfig(lora_rank=2), [5, 6])
    optimizer, scheduler = training_setup(model)
    for _ in range(3):
        step(model, optimizer, scheduler)
    model.eval()
    save_model(model, tokenizer, tmp_path / "best")
    input_ids = torch.tensor([[5, 6, 7]])
    expected = model(input_ids=input_ids).logits
    got = load_model(tmp_path / "best").eval()(input_ids=input_ids).logits
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert any("lora_A" in name for name, _ in model.named_parameters())  # the one in training is untouched


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_training_goes_on_to_the_bit_from_a_state(lora_rank: int, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        model = tiny_model("qwen2", attention_dropout=0.2)
        return add_lora(model, PolicyConfig(lora_rank=lora_rank), [5]) if lora_rank else model

    torch.manual_seed(0)
    model = fresh()
    optimizer, scheduler = training_setup(model)
    for number in range(3):
        step(model, optimizer, scheduler, number)
    save_state(tmp_path / "state", model, optimizer, scheduler, Progress("sft", step=3, best_value=0.5))
    for number in range(3, 6):
        step(model, optimizer, scheduler, number)

    again = fresh()
    optimizer2, scheduler2 = training_setup(again)
    load_state(tmp_path / "state", again, optimizer2, scheduler2)
    for number in range(3, 6):
        step(again, optimizer2, scheduler2, number)
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert scheduler.get_last_lr() == scheduler2.get_last_lr()
    assert read_progress(tmp_path / "state") == Progress("sft", step=3, best_value=0.5)


def test_a_state_of_an_earlier_version_with_a_random_state_still_loads(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    optimizer, scheduler = training_setup(model)
    step(model, optimizer, scheduler)
    save_state(tmp_path / "state", model, optimizer, scheduler, Progress("sft", step=1))
    path = tmp_path / "state" / "optimizer.safetensors"
    save_file({**load_file(path), "random_state": torch.get_rng_state()}, path)
    again = tiny_model("qwen2", seed=1)
    load_state(tmp_path / "state", again, *training_setup(again))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.parameters(), model.parameters(), strict=True))


def test_of_several_processes_the_first_alone_writes(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, second = tiny_model("qwen2"), Processes(rank=1)
    save_model(model, tokenizer, tmp_path / "best", processes=second)
    save_state(tmp_path / "state", model, *training_setup(model), Progress("sft"), processes=second)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = tiny_model("qwen2"), tiny_model("qwen3")
    save_state(tmp_path / "state", model, *training_setup(model), Progress("sft"))
    with pytest.raises(ValueError, match="expected weights named as the model's"):
        load_state(tmp_path / "state", other, *training_setup(other))


def test_a_failed_save_leaves_the_old_checkpoint(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model("qwen2")
    save_model(model, tokenizer, tmp_path / "best")
    before = (tmp_path / "best" / "model.safetensors").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        save_model(tiny_model("qwen2", seed=1), tokenizer, tmp_path / "best")
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before


def test_a_state_says_how_far_it_is_and_of_which_config(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    for number, progress in enumerate((Progress("sft", step=4, finished=True), Progress("grpo", step=0, evaluated=0))):
        folder = state_folder(tmp_path, progress.stage, progress.step)
        save_state(folder, model, *training_setup(model), progress, config_digest="ours")
        assert find_state(tmp_path, "ours") == (folder, progress), number
    with pytest.raises(ValueError, match="expected a state of this run's config"):
        find_state(tmp_path, "theirs")


def test_no_state_is_no_progress(tmp_path: Path) -> None:
    assert find_state(tmp_path, "") is None


def test_a_state_of_an_earlier_version_was_saved_after_an_evaluation(tmp_path: Path) -> None:
    progress = {"stage": "grpo", "step": 40, "best_step": 20, "best_value": 0.5, "stale": 1, "metrics_size": 9}
    (tmp_path / "state.json").write_text(json.dumps({"progress": progress}))
    assert read_progress(tmp_path) == Progress(**progress, evaluated=40)
