"""Presets, YAML and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tawin.config import (
    PRESETS,
    Config,
    GRPOConfig,
    OptimizerConfig,
    SFTConfig,
    TAWinConfig,
    differences,
    dump_yaml,
    load_yaml,
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(PRESETS[name]))
    assert load_yaml(path) == PRESETS[name]


def test_a_partial_yaml_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("seed: 7\ngrpo:\n  learning_rate: 1e-5\n  tawin:\n    anchor: 4\n")
    config = load_yaml(path, PRESETS["cpu-small"])
    assert [name for name, _, _ in differences(PRESETS["cpu-small"], config)] == [
        "seed",
        "grpo.learning_rate",
        "grpo.tawin.anchor",
    ]
    assert config.grpo.learning_rate == 1e-5
    assert isinstance(config.grpo.tawin.anchor, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpo:\n  learning_rat: 1", "unknown option 'grpo.learning_rat'"),
        ("grpo: 3", "grpo: expected a mapping"),
        ("- 1", "expected a mapping"),
        ("seed: one", "seed: expected int, got 'one'"),
        ("seed: true", "seed: expected int, got True"),
        ("grpo:\n  ensure_positive: 1", "ensure_positive: expected bool"),
        ("grpo:\n  group_size: 1", "grpo.group_size: expected 2..512, got 1"),
        ("grpo:\n  negatives: random", "grpo.ensure_positive"),
        ("grpo:\n  loss_type: cispo", "grpo.epsilon_high"),
        (
            "grpo: {negatives: sample, normalizer: vocab}",
            "grpo.normalizer: expected 'trie' or 'auto'",
        ),
        ("grpo:\n  normalizer: items", "grpo.normalizer: expected one of ('auto', 'vocab', 'trie'), got 'items'"),
        ("grpo:\n  reward: dense", "grpo.reward: expected one of ('binary', 'ranking'), got 'dense'"),
        ("attention: eager", "attention: expected one of ('sdpa', 'flash_attention_2'), got 'eager'"),
        ("prompt: {style: d3}", "prompt.style: expected one of ('plain', 'rere', 'minionerec'), got 'd3'"),
        ("prompt: {template: 3}", "prompt.template: expected str | None, got 3"),
        ("prompt: {template: Next}", "prompt.template: expected text with {history} once, got 'Next'"),
        ("split:\n  rl_targets: 0", "split.rl_targets: expected at least 1, got 0"),
        ("grpo: {tawin: {anchor_start: wide}}", "grpo.tawin.anchor_start: expected float | None, got 'wide'"),
        (
            "grpo: {tawin: {anchor_start: -1}}",
            "grpo.tawin.anchor_start: expected 0 or more and finite, or None, got -1",
        ),
        ("grpo: {tawin: {anchor_start: .inf}}", "grpo.tawin.anchor_start: expected 0 or more and finite"),
        ("grpo: {tawin: {anchor_start: .nan}}", "grpo.tawin.anchor_start: expected 0 or more and finite"),
        ("grpo: {tawin: {anchor_steps_share: 0}}", "grpo.tawin.anchor_steps_share: expected a share in (0, 1], got 0"),
        ("grpo: {tawin: {anchor_steps_share: 1.5}}", "grpo.tawin.anchor_steps_share: expected a share in (0, 1]"),
        ("seed: [", "not valid YAML"),
    ],
)
def test_a_bad_yaml_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_yaml(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"seed: \xff", "not valid YAML: 'utf-8' codec can't decode"),
        (b"[" * 5000, "not valid YAML: maximum recursion depth"),
        (b"grpo: {warmup_share: .nan}", "grpo.warmup_share: expected in [0, 1], got nan"),
        (b"split: {rl_targets: true}", "split.rl_targets: expected int, got True"),
    ],
)
def test_whatever_is_wrong_with_a_yaml_its_name_comes_first(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(raw)
    with pytest.raises(ValueError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_a_yaml_whose_value_would_be_gigabytes_of_text_is_refused_in_a_few_words(tmp_path: Path) -> None:
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(["seed: &a0 [1, 1, 1]", *levels, "model: *a11"]).replace("a11: &a11", "data: &a11"))
    with pytest.raises(ValueError) as caught:
        load_yaml(path)
    assert len(str(caught.value)) < 1000


def test_a_yaml_that_runs_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_yaml(path)
    assert not (tmp_path / "made").exists()


def test_a_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("section", [SFTConfig, GRPOConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("weight_decay", -1.0),
        ("max_grad_norm", 0.0),
        ("schedule", "linear"),
        ("warmup_share", 1.5),
    ],
)
def test_values_out_of_range_name_their_option(section: type[OptimizerConfig], name: str, value: object) -> None:
    stage = "sft" if section is SFTConfig else "grpo"
    with pytest.raises(ValueError, match=f"{stage}.{name}: expected .*, got"):
        section(**{name: value})


def test_every_option_is_documented_in_yaml_order() -> None:
    assert list(dataclasses.asdict(Config())) == [
        "data",
        "data_cache",
        "model",
        "attention",
        "seed",
        "deterministic",
        "split",
        "synthetic",
        "catalog",
        "prompt",
        "policy",
        "sft",
        "grpo",
        "evaluation",
        "guards",
        "watchdog",
        "tracking",
    ]


@pytest.mark.parametrize(
    ("negatives", "normalizer", "expected"),
    [("beam", "auto", "vocab"), ("beam", "trie", "trie"), ("sample", "auto", "trie"), ("sample", "trie", "trie")],
)
def test_log_probs_are_over_what_completions_are_drawn_from(negatives, normalizer, expected) -> None:
    assert GRPOConfig(negatives=negatives, normalizer=normalizer).softmax_over == expected


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(100, None, 100), (None, 1, 4), (None, 3, 11), (2, 1, 2), (9, 1, 4), (0, 1, 0)]
)
def test_rl_ends_with_its_steps_or_its_epochs_whichever_come_first(
    steps: int | None, epochs: int | None, expected: int
) -> None:
    config = GRPOConfig(batch_size=2, gradient_accumulation=3, steps=steps, epochs=epochs)
    assert config.steps_on(21) == expected  # 21 prompts are three and a half batches


def test_rl_has_an_end() -> None:
    with pytest.raises(ValueError, match=r"grpo.steps: expected a number where grpo.epochs is None, got None"):
        GRPOConfig(steps=None)
    with pytest.raises(ValueError, match=r"grpo.steps: expected the number that steps_on gives, got None"):
        GRPOConfig(steps=None, epochs=1).at_step(0)
    with pytest.raises(ValueError, match=r"grpo.epochs: expected at least 1, or None, got 0"):
        GRPOConfig(epochs=0)


def test_the_paper_preset_has_the_papers_settings() -> None:
    config = PRESETS["paper"]
    assert config.model == "Qwen/Qwen2.5-0.5B"
    assert (config.catalog.item_tokens, config.prompt.style) == ("title", "rere")
    assert (config.sft.learning_rate, config.sft.epochs, config.sft.optimizer) == (3e-4, 10, "adamw")
    assert (config.grpo.learning_rate, config.grpo.epochs, config.grpo.steps) == (1e-5, 1, None)
    assert (config.grpo.group_size, config.grpo.negatives, config.grpo.loss_type) == (16, "beam", "grpo")
    assert config.grpo.normalize_std and config.grpo.reward == "binary"
    tawin = config.grpo.tawin
    assert (tawin.anchor, tawin.temperature, tawin.rank_transform) == (2.0, 1.0, "identity")
    # ReRe's, where the paper does not say: 128 sequences, 1,024 completions, the KL term.
    assert config.sft.batch_size * config.sft.gradient_accumulation == 128
    assert config.grpo.batch_size * config.grpo.gradient_accumulation * config.grpo.group_size == 1024
    assert (config.grpo.beta, config.sft.patience) == (1e-3, 3)


def test_an_option_that_may_be_a_number_or_none_is_read_as_either(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    for text, expected in (("4", 4.0), ("1e1", 10.0), ("null", None)):
        path.write_text(f"grpo: {{tawin: {{anchor_start: {text}}}}}")
        found = load_yaml(path).grpo.tawin.anchor_start
        assert found == expected and type(found) is type(expected)


def test_an_anchor_moves_in_equal_steps_and_stays_where_it_has_come_to() -> None:
    config = GRPOConfig(steps=10, tawin=TAWinConfig(anchor=2, anchor_start=10, anchor_steps_share=0.5))
    anchors = [config.at_step(step).tawin.anchor for step in range(10)]
    assert anchors == [10, 8, 6, 4, 2, 2, 2, 2, 2, 2]
    assert config.tawin.moves and config.tawin.kernel_options().anchor == 2
    assert not dataclasses.replace(config.tawin, enabled=False).moves


@pytest.mark.parametrize("share", [0.1, 0.3, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
def test_a_moving_anchor_starts_and_ends_at_its_very_values(steps: int, share: float) -> None:
    tawin = TAWinConfig(anchor=0.1, anchor_start=7.3, anchor_steps_share=share)
    anchors = [tawin.at_step(step, steps).anchor for step in range(steps)]
    moving = round(share * steps)
    assert anchors[0] == (7.3 if moving > 1 else 0.1)
    assert set(anchors[max(0, moving - 1) :]) == {0.1}
    assert anchors == sorted(anchors, reverse=True)


def test_an_anchor_that_does_not_move_is_that_of_every_step() -> None:
    config = GRPOConfig(tawin=TAWinConfig(anchor=3.0))
    assert not config.tawin.moves
    assert config.at_step(0) == config.at_step(57) == config
