"""Configs in YAML: what is written is read again, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tawin.config.files import differences, dump_yaml, load_yaml
from tawin.config.presets import PRESETS


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
        ("prompt: {title_words: 3}", "prompt.title_words: expected None where items are not titles"),
        ("prompt: {title_words: 0}", "prompt.title_words: expected at least 1, got 0"),
        ("grpo: {count: choices}", "grpo.count: expected 'tokens' with a softmax over the vocabulary"),
        (
            "grpo: {negatives: sample, normalizer: vocab}",
            "grpo.normalizer: expected 'trie' or 'auto'",
        ),
        ("grpo:\n  normalizer: items", "grpo.normalizer: expected one of ('auto', 'vocab', 'trie'), got 'items'"),
        ("grpo:\n  negatives: dense", "grpo.negatives: expected one of ('beam', 'random', 'sample'), got 'dense'"),
        ("attention: eager", "attention: expected one of ('sdpa', 'flash_attention_2'), got 'eager'"),
        ("prompt: {style: d3}", "prompt.style: expected one of ('plain', 'rere', 'minionerec'), got 'd3'"),
        ("prompt: {template: 3}", "prompt.template: expected str | None, got 3"),
        ("prompt: {template: Next}", "prompt.template: expected text with {history} once, got 'Next'"),
        ("split:\n  rl_targets: 0", "split.rl_targets: expected at least 1, got 0"),
        ("split:\n  rl_seen: 2", "split.rl_seen: expected 0..rl_targets, got 2"),
        ("grpo: {tawin: {anchor_start: wide}}", "grpo.tawin.anchor_start: expected float | None, got 'wide'"),
        (
            "grpo: {tawin: {anchor_start: -1}}",
            "grpo.tawin.anchor_start: expected 0 or more and finite, or None, got -1",
        ),
        ("grpo: {tawin: {anchor_start: .inf}}", "grpo.tawin.anchor_start: expected 0 or more and finite"),
        ("grpo: {tawin: {anchor_start: .nan}}", "grpo.tawin.anchor_start: expected 0 or more and finite"),
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


def test_a_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")


def test_an_option_that_may_be_a_number_or_none_is_read_as_either(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    for text, expected in (("4", 4.0), ("1e1", 10.0), ("null", None)):
        path.write_text(f"grpo: {{tawin: {{anchor_start: {text}}}}}")
        found = load_yaml(path).grpo.tawin.anchor_start
        assert found == expected and type(found) is type(expected)
