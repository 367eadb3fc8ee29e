"""A plan counts what a run does: its steps, evaluations and tokens, and the bytes that are arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tawin.catalog.catalog import Catalog
from tawin.catalog.tokenizer import load_tokenizer
from tawin.config import CatalogConfig, Config, GRPOConfig, SFTConfig
from tawin.dry_run import plan as plan_module
from tawin.dry_run.plan import Plan, make_plan, memory
from tawin.model.policy import add_lora, load_model
from tawin.run.folder import RunFolder
from tawin.run.records import read_metrics
from tawin.serve.load import load_data
from tawin.train.grpo import train_grpo
from tawin.train.sft import sft_windows, train_sft

from ..runs import SMALL, make_run

TINY = dataclasses.replace(
    SMALL,
    sft=SFTConfig(batch_size=16, epochs=3),
    grpo=GRPOConfig(batch_size=8, steps=5, group_size=4, evaluate_every=2),
    evaluation=dataclasses.replace(SMALL.evaluation, valid_users=4),
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog.load(make_run(tmp_path_factory.mktemp("runs") / "run").catalog)


def changed(config: Config, stage: str, **options: Any) -> Config:
    return dataclasses.replace(config, **{stage: dataclasses.replace(getattr(config, stage), **options)})


def planned(catalog: Catalog, config: Config) -> Plan:
    return make_plan(catalog, load_data(config)[1], config)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        changed(changed(TINY, "sft", evaluate_every=2), "grpo", steps=4),
        changed(changed(TINY, "sft", max_steps=6, gradient_accumulation=2), "grpo", steps=1),
        changed(changed(TINY, "sft", max_steps=3), "grpo", steps=0),
        changed(TINY, "sft", epochs=0),
    ],
    ids=["plain", "every second epoch", "accumulated", "within an epoch", "no sft"],
)
def test_a_run_does_the_steps_and_evaluations_that_were_planned(
    catalog: Catalog, config: Config, tmp_path: Path
) -> None:
    made = make_run(tmp_path / "made", config)
    run = RunFolder.create(tmp_path / "run", config)
    tokenizer, split = load_tokenizer(str(made.catalog)), load_data(config)[1]
    accelerator = Accelerator(cpu=True)
    train_sft(accelerator, load_model(made.checkpoints / "sft"), tokenizer, catalog, split, config, run)
    start = load_model(made.checkpoints / "sft")
    train_grpo(accelerator, start, None, tokenizer, catalog, split, config, run)
    plan, lines = planned(catalog, config), read_metrics(run.path / "metrics.jsonl")
    for name, stage in (("sft", plan.sft), ("grpo", plan.grpo)):
        own = [line for line in lines if line["stage"] == name]
        assert sum("loss" in line for line in own) == stage.steps
        assert sum("valid" in line for line in own) == stage.evaluations
    assert plan.sft.epochs == pytest.approx(max((line["epoch"] for line in lines if "epoch" in line), default=0), abs=1)
    assert plan.valid_users == 4 and plan.final_users == 120


def test_tokens_are_those_of_the_encoded_sequences_and_prompts(catalog: Catalog) -> None:
    split = load_data(TINY)[1]
    windows, first = sft_windows(catalog, split, TINY)
    each = int(catalog.encode_windows(windows, first)[1].sum()) / len(windows)
    plan = planned(catalog, TINY)
    assert plan.sft.tokens == pytest.approx(16 * each) and plan.sft.known == "exact"
    prompts = int(catalog.encode_histories(split.rl.histories)[1].sum()) / len(split.rl)
    assert plan.grpo.prompt_tokens == pytest.approx(8 * prompts)
    assert (plan.grpo.prompts, plan.grpo.sequences) == (8, 32)
    lengths = (catalog.token_ids >= 0).sum(1)
    assert plan.grpo.tokens == pytest.approx(32 * float(lengths.float().mean()))
    assert len(lengths.unique()) == 2 and plan.grpo.known == "estimate"  # which items come is not known


def test_of_many_sequences_a_sample_is_counted(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planned(catalog, TINY)
    monkeypatch.setattr(plan_module, "SAMPLE", 30)
    some = planned(catalog, TINY)
    assert (some.sft.known, some.grpo.known) == ("sample", "sample")
    assert some.sft.tokens == pytest.approx(whole.sft.tokens, rel=0.2)
    assert some.sft.steps == whole.sft.steps


def bytes_of(model: torch.nn.Module, catalog: Catalog, config: Config) -> dict[str, tuple[float, float]]:
    found = memory(model, catalog, planned(catalog, config), config, bf16=False)
    return {part.what: (part.sft, part.grpo) for part in found}


def test_bytes_of_weights_gradients_and_moments_are_those_that_training_has(catalog: Catalog, tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run").checkpoints / "sft")
    found = bytes_of(model, catalog, TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(
        state[name].numel() * state[name].element_size()
        for state in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    assert found["weights, fp32"] == found["gradients, fp32"] == (weights, weights)
    assert found["optimizer's moments"] == (moments, moments)
    assert found["reference model, fp32"] == (0, 0)
    assert bytes_of(model, catalog, changed(TINY, "grpo", beta=0.1))["reference model, fp32"] == (0, weights)


def test_adapters_have_small_gradients_and_need_no_reference(catalog: Catalog, tmp_path: Path) -> None:
    config = changed(changed(TINY, "policy", lora_rank=2), "grpo", beta=0.1)
    model = add_lora(load_model(make_run(tmp_path / "run").checkpoints / "sft"), config.policy, [])
    found = bytes_of(model, catalog, config)
    assert 0 < found["gradients, fp32"][0] < 0.5 * found["weights, fp32"][0]
    assert found["reference model, fp32"] == (0, 0)


def test_the_cache_grows_with_beams_and_halves_in_bf16(catalog: Catalog, tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run").checkpoints / "sft")
    name = "cache of evaluation or rollout"
    narrow, wide = (
        bytes_of(model, catalog, changed(TINY, "evaluation", beam_width=width))[name][0] for width in (10, 20)
    )
    # 2 layers, keys and values of 16 numbers of 4 bytes; of a beam all tokens but the last are run.
    assert wide - narrow == pytest.approx(10 * 4 * (catalog.trie.max_depth - 1) * 2 * 2 * 16 * 4)
    in_bf16 = memory(model, catalog, planned(catalog, TINY), TINY, bf16=True)
    in_fp32 = memory(model, catalog, planned(catalog, TINY), TINY, bf16=False)
    assert [a.sft / b.sft for a, b in zip(in_bf16[-2:], in_fp32[-2:], strict=True)] == [0.5, 0.5]


def test_checkpointed_activations_are_fewer(catalog: Catalog, tmp_path: Path) -> None:
    model = load_model(make_run(tmp_path / "run").checkpoints / "sft")
    name = "activations of a forward"
    kept = bytes_of(model, catalog, TINY)[name]
    fewer = bytes_of(model, catalog, changed(TINY, "policy", checkpoint_activations=True))[name]
    assert np.all(np.array(fewer) < np.array(kept))


def test_titles_have_tokens_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tawin.catalog.catalog.TITLE_VOCABULARY", 300)  # so that titles differ in length
    config = dataclasses.replace(TINY, catalog=CatalogConfig(item_tokens="title"))
    plan = planned(Catalog.load(make_run(tmp_path / "run", config).catalog), config)
    assert plan.grpo.tokens > 32 * 3 and plan.grpo.known == "estimate"
