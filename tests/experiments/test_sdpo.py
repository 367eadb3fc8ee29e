"""The S-DPO loss against a slow one, its negatives, and that training does what it is for and can be stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from experiments.sdpo import Preferences, SDPOOptions, draw_preferences, log_ratios, sdpo_losses, train_sdpo
from tawin.catalog.catalog import Catalog
from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.config import Config, EvaluationConfig
from tawin.data.dataset import Examples, Split
from tawin.run.folder import RunFolder
from tawin.run.states import states
from tawin.train.checkpoint import Progress
from tests.tawin.models import FAMILIES, tiny_model
from tests.tawin.small_groups import small_catalog

HISTORIES = [np.array([item]) for item in range(7)]
# Item i is followed by item i + 1.
PROMPTS = Examples(np.arange(7), HISTORIES, np.array([(item + 1) % 7 for item in range(7)]))
OPTIONS = SDPOOptions(learning_rate=3e-3, steps=6, batch_size=3, negatives=3, evaluate_every=2)


def drawn(negatives: int, *, seed: int = 0, examples: Examples = PROMPTS) -> Preferences:
    return draw_preferences(small_catalog(), examples, negatives, torch.Generator().manual_seed(seed))


def slow_log_prob(model: Any, preferences: Preferences, row: int, column: int) -> Tensor:
    """log p of one item after its prompt by a forward of its own."""
    prompt = preferences.input_ids[row][preferences.attention_mask[row].bool()]
    tokens = preferences.token_ids[row, column]
    tokens = tokens[tokens >= 0]
    logits = model(input_ids=torch.cat((prompt, tokens))[None], use_cache=False).logits[0]
    log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, tokens[:, None]).sum()


def slow_loss(model: nn.Module, reference: nn.Module, preferences: Preferences, beta: float) -> Tensor:
    """The formula as the paper has it, item by item, mean over the prompts."""
    losses = []
    for row in range(len(preferences.input_ids)):
        ratios = []
        for column in range(preferences.token_ids.shape[1]):
            with torch.no_grad():
                of_reference = slow_log_prob(reference, preferences, row, column)
            ratios.append(slow_log_prob(model, preferences, row, column) - of_reference)
        others = torch.stack([torch.exp(beta * (ratio - ratios[0])) for ratio in ratios[1:]]).sum()
        losses.append(-logsigmoid(-torch.log(others)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("negatives", "beta"), [(1, 1.0), (3, 0.3), (5, 0.1)])
def test_loss_and_gradient_are_those_of_the_formula_item_by_item(family: str, negatives: int, beta: float) -> None:
    model, reference = tiny_model(family, seed=1).double(), tiny_model(family, seed=2).double()
    preferences = drawn(negatives)
    expected = slow_loss(model, reference, preferences, beta)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected_gradients = torch.autograd.grad(expected, parameters)
    loss = sdpo_losses(log_ratios(model, reference, preferences), beta).mean()
    # Even in an fp64 model the norms and rotations are fp32, and a shared prompt sums in another order.
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    for name, ours, theirs in zip(names, torch.autograd.grad(loss, parameters), expected_gradients, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, atol=1e-4 * scale, rtol=1e-4, msg=name)


def test_with_one_negative_the_loss_is_dpos() -> None:
    ratios = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    expected = -logsigmoid(0.7 * (ratios[:, 0] - ratios[:, 1]))
    torch.testing.assert_close(sdpo_losses(ratios, 0.7), expected)


def test_the_loss_is_finite_where_the_formula_would_overflow() -> None:
    ratios = torch.tensor([[-200.0, 200.0, 100.0], [200.0, -200.0, -200.0]])
    torch.testing.assert_close(sdpo_losses(ratios, 1.0), torch.tensor([400.0, 0.0]))


def test_negatives_are_distinct_sequences_other_than_the_positive_and_all_alike_likely() -> None:
    catalog = small_catalog()  # seven items, six sequences: items 1 and 4 share one
    sequences = [tuple(token for token in item if token >= 0) for item in catalog.token_ids.tolist()]
    counts = dict.fromkeys(sequences, 0)
    examples = Examples(np.arange(900), [np.array([0])] * 900, np.full(900, 4))
    for row in drawn(3, examples=examples).token_ids.tolist():
        positive, *negatives = (tuple(token for token in item if token >= 0) for item in row)
        assert positive == sequences[4]
        assert len({positive, *negatives}) == 4
        for negative in negatives:
            counts[negative] += 1
    assert counts.pop(sequences[4]) == 0
    assert len(counts) == 5
    # 900 x 3 draws over five: 540 each, with a standard deviation of sqrt(900 * 0.6 * 0.4) = 15.
    assert all(abs(count - 540) < 5 * 15 for count in counts.values())
    assert torch.equal(drawn(3, seed=1).token_ids, drawn(3, seed=1).token_ids)
    assert not torch.equal(drawn(3, seed=1).token_ids, drawn(3, seed=2).token_ids)
    with pytest.raises(ValueError, match=r"sdpo\.negatives: expected at most 5"):
        drawn(6)


def start(**changes: object) -> nn.Module:
    return tiny_model("qwen2", seed=1, **changes)


def trained(
    folder: Path,
    options: SDPOOptions,
    model: nn.Module,
    reference: nn.Module | None = None,
    prompts: Examples = PROMPTS,
) -> tuple[Progress, list[dict[str, Any]]]:
    """What training found, and the lines that it wrote, without their times."""
    config = Config(evaluation=EvaluationConfig(beam_width=10, batch_size=7, valid_users=None, exclude_history="no"))
    split = Split(sft=[], rl=prompts, valid=PROMPTS, test=PROMPTS)
    run = RunFolder.open(folder) if folder.exists() else RunFolder.create(folder, config)
    catalog: Catalog = small_catalog()
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    reference = start() if reference is None else reference
    progress = train_sdpo(Accelerator(cpu=True), model, reference, tokenizer, catalog, split, config, options, run)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return progress, [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_training_raises_the_margin_of_the_positive_and_the_recall(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, steps=40, batch_size=7, evaluate_every=10)
    reference = start(attention_dropout=0.5).train()  # a reference has no dropout, whatever it came as
    before = [p.clone() for p in reference.parameters()]
    progress, lines = trained(tmp_path / "run", options, start(), reference)
    assert progress.stage == "sdpo" and progress.finished and progress.step == 40
    assert all(line["stage"] == "sdpo" for line in lines)
    steps = [line for line in lines if "loss" in line]
    curve = [line["valid"]["recall@1"] for line in lines if "valid" in line]
    assert len(steps) == 40 and len(curve) == 5
    assert steps[0]["loss"] == pytest.approx(np.log(4), abs=1e-4)  # the start is the reference: all r are zero
    assert steps[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert steps[-1]["margin"] > 1.0 and steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["wins"] > 0.8
    assert max(curve) > curve[0]
    assert all(torch.equal(p, old) for p, old in zip(reference.parameters(), before, strict=True))
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "sdpo")
    assert best.config.vocab_size == 40
    assert progress.best_value == max(line["valid"]["recall@3"] for line in lines if "valid" in line)


def test_each_step_draws_its_own_negatives(tmp_path: Path) -> None:
    # One prompt, one negative, weights that hardly move: the loss tells the negatives apart.
    options = dataclasses.replace(OPTIONS, learning_rate=1e-12, steps=12, batch_size=1, negatives=1, evaluate_every=12)
    _, lines = trained(tmp_path / "run", options, start(), tiny_model("qwen2", seed=2), PROMPTS.take([2]))
    losses = {round(line["loss"], 3) for line in lines if "loss" in line}
    assert 3 <= len(losses) <= 5  # of the five other sequences


@pytest.mark.parametrize("forwards", [1, 4, 7])
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_was(forwards: int, tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, gradient_accumulation=2)
    whole = trained(tmp_path / "whole", options, start(attention_dropout=0.3))
    model: Any = start(attention_dropout=0.3)
    done: list[int] = []

    def stop(module: nn.Module, _inputs: object) -> None:
        done.append(int(torch.is_grad_enabled()))  # the policy's forwards, and no evaluation's
        if sum(done) > forwards:
            raise KeyboardInterrupt

    model.model.layers[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", options, model)
    resumed = trained(tmp_path / "stopped", options, start(attention_dropout=0.3))
    assert resumed[1] == whole[1]
    assert dataclasses.replace(resumed[0], seconds=0, metrics_size=0) == dataclasses.replace(
        whole[0], seconds=0, metrics_size=0
    )
    checkpoints = [tmp_path / run / "checkpoints" for run in ("stopped", "whole")]
    newest = states(checkpoints[1])[-1].name
    for name in ("sdpo/model.safetensors", f"{newest}/weights.safetensors", f"{newest}/optimizer.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in checkpoints)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)


def test_the_policy_starts_at_its_reference_whatever_its_dropout(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, steps=1, negatives=4)
    _, lines = trained(tmp_path / "run", options, start(attention_dropout=0.3), start())
    (first,) = (line for line in lines if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(1 + 4), abs=1e-5)  # fp32 log-probs of a few nats
    assert first["margin"] == pytest.approx(0.0, abs=1e-5)


def test_a_batch_in_two_forwards_gives_the_step_of_one(tmp_path: Path) -> None:
    # One optimizer step at full rate; negatives are drawn forward by forward, so there is no choice of them here.
    one = dataclasses.replace(OPTIONS, steps=1, batch_size=6, negatives=5, warmup_share=0.0)
    two = dataclasses.replace(one, batch_size=3, gradient_accumulation=2)
    (_, ours), (_, theirs) = (trained(tmp_path / str(o.batch_size), o, start()) for o in (two, one))
    assert [line["valid"] for line in ours if "valid" in line] == [line["valid"] for line in theirs if "valid" in line]
    for name in ("loss", "margin", "wins", "grad_norm", "learning_rate"):
        (value,), (expected,) = ([line[name] for line in lines if name in line] for lines in (ours, theirs))
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)  # fp32, summed in another order


def test_what_does_not_fit_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    for name, value in (("beta", 0.0), ("negatives", 0), ("steps", -1), ("evaluate_every", 0), ("learning_rate", 0.0)):
        with pytest.raises(ValueError, match=rf"sdpo\.{name}"):
            dataclasses.replace(OPTIONS, **{name: value})
    with pytest.raises(ValueError, match=r"sdpo\.negatives: expected at most 5"):
        trained(tmp_path / "many", dataclasses.replace(OPTIONS, negatives=6), start())
    model = start()
    with pytest.raises(ValueError, match="reference"):
        trained(tmp_path / "itself", OPTIONS, model, model)
    assert not (tmp_path / "many" / "metrics.jsonl").exists()
    assert not (tmp_path / "itself" / "metrics.jsonl").exists()
