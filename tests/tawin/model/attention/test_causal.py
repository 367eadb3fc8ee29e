"""FlashAttention is refused where it cannot run; where it is asked for, supervised fine-tuning's forward alone runs it.

flash-attn runs on GPUs alone. In its place stands an attention under its name that takes what transformers would give
it, a padding mask or none, and computes the same by sdpa: so which forward runs it, and with what, is the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.cli import train
from tawin.config import PolicyConfig
from tawin.model.attention.causal import causal_log_probs, require_attention, require_model_takes
from tawin.model.cross_entropy import WindowBatch, window_loss
from tawin.model.packing import checkpoint_activations
from tawin.model.policy import build_model

from ...models import tiny_model

FLASH = "flash_attention_2"


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What every call of the stand-in was given as its mask."""
    calls: list[Any] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        assert attention_mask is None or attention_mask.dim() == 2, "FlashAttention takes no 4-D mask"
        calls.append(attention_mask)
        mask = None
        if attention_mask is not None:
            length = query.shape[2]
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            mask = (causal & attention_mask[:, None].bool())[:, None] | torch.eye(length, dtype=torch.bool)
        return AttentionInterface()["sdpa"](module, query, key, value, mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, FLASH, attention)
    yield calls


def batch(rows: int) -> WindowBatch:
    input_ids = torch.randint(1, 40, (rows, 7), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 5:] = 0
    return WindowBatch(input_ids, attention_mask, input_ids.masked_fill(attention_mask == 0, -100))


def loss_and_gradients(model: nn.Module, attention: str) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    (loss,) = window_loss(model, batch(3), 10.0, attention)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_fine_tuning_runs_the_attention_that_was_asked_for(
    family: str, checkpoints: bool, flash_calls: list[Any]
) -> None:
    model = tiny_model(family).train()
    expected, gradients = loss_and_gradients(model, "sdpa")
    assert not flash_calls
    if checkpoints:
        checkpoint_activations(model)
    loss, found = loss_and_gradients(model, FLASH)
    # Every layer once, and in the backward pass once more where its activations were not kept: by the same attention,
    # although by then the forward has left it.
    assert len(flash_calls) == model.config.num_hidden_layers * (2 if checkpoints else 1)
    assert all(mask.shape == (3, 7) for mask in flash_calls)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.config._attn_implementation == "sdpa"


def test_a_whole_run_has_masks_where_flash_attention_is_not(
    flash_calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "require_attention", lambda attention: None)
    small = ["--synthetic.num-users=40", "--synthetic.num-items=30", "--synthetic.num-clusters=5", "--catalog.codes=8"]
    small += ["--policy.hidden-size=16", "--policy.layers=1", "--policy.heads=2", "--policy.intermediate-size=24"]
    small += ["--sft.epochs=1", "--grpo.steps=1", "--grpo.batch-size=8", "--grpo.group-size=4", "--grpo.beta=0.01"]
    small += ["--evaluation.beam-width=10", "--evaluation.valid-users=10"]
    train.main([*small, f"--attention={FLASH}", "--out", str(tmp_path / "run")])
    # The one step of the one epoch: 40 users are a batch. Rollouts, reference, policy and evaluation never came.
    assert len(flash_calls) == 1


def test_an_error_within_it_leaves_the_model_as_it_was(flash_calls: list[Any]) -> None:
    model = tiny_model("qwen2")
    expected = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    with pytest.raises(IndexError):
        causal_log_probs(model, torch.tensor([[3, 99]]), torch.ones(1, 2), torch.tensor([[3, 4]]), FLASH)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=torch.tensor([[3, 4, 5]])).logits, expected) and not flash_calls


def test_layers_that_others_run_again_in_the_backward_pass_are_refused_under_flash_attention() -> None:
    model = tiny_model("qwen2").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="needs activation checkpointing as `checkpoint_activations` switches it on"):
        loss_and_gradients(model, FLASH)


@pytest.mark.parametrize(
    ("capability", "package", "message"),
    [
        (
            None,
            None,
            r"needs a CUDA device and flash-attn \(pip install flash-attn --no-build-isolation\): get that, or",
        ),
        (None, "flash_attn", r"'flash_attention_2' needs a CUDA device: get that, or use --attention sdpa"),
        ((7, 5), "flash_attn", r"needs a GPU of compute capability 8.0 or more \(this one has \(7, 5\)\)"),
        ((9, 0), None, r"needs flash-attn \(pip install"),
        ((9, 0), "flash_attn", None),
    ],
)
def test_what_this_machine_lacks_is_named(
    capability: tuple[int, int] | None, package: str | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("tawin.model.attention.causal.importlib.util.find_spec", lambda _name: package)
    require_attention("sdpa")
    if message is None:
        require_attention(FLASH)
    else:
        with pytest.raises(ValueError, match=message):
            require_attention(FLASH)


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash-attn may well run here")
def test_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options in ([], ["--dry-run"]):
        with pytest.raises(SystemExit, match=r"error: attention: 'flash_attention_2' needs a CUDA device"):
            train.main([f"--attention={FLASH}", "--out", str(tmp_path / "run"), *options])
    assert not (tmp_path / "run").exists()


def test_a_model_without_it_is_refused_by_name() -> None:
    model = build_model(PolicyConfig(hidden_size=16, layers=1, heads=2), make_semantic_tokenizer(["<a_0>"]), seed=0)
    require_model_takes(model, FLASH)
    model._supports_flash_attn = False
    require_model_takes(model, "sdpa")
    with pytest.raises(ValueError, match="attention: expected 'sdpa' for Qwen2ForCausalLM, which transformers"):
        require_model_takes(model, FLASH)
