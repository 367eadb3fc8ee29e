"""What a stage's options come to: what is refused, how long RL goes on, where the anchor stands."""

from __future__ import annotations

import dataclasses

import pytest

from tawin.config import Config, GRPOConfig, OptimizerConfig, SFTConfig, TAWinConfig


@pytest.mark.parametrize("section", [SFTConfig, GRPOConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("weight_decay", -1.0),
        ("schedule", "linear"),
        ("warmup_share", 1.5),
    ],
)
def test_values_out_of_range_name_their_option(section: type[OptimizerConfig], name: str, value: object) -> None:
    stage = "sft" if section is SFTConfig else "grpo"
    with pytest.raises(ValueError, match=f"{stage}.{name}: expected .*, got"):
        section(**{name: value})


def test_config_yaml_has_the_sections_in_this_order() -> None:
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
        "checkpoints",
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


def test_an_anchor_moves_in_equal_steps() -> None:
    config = GRPOConfig(steps=10, tawin=TAWinConfig(anchor=2, anchor_start=11))
    anchors = [config.at_step(step).tawin.anchor for step in range(10)]
    assert anchors == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert config.tawin.moves and config.tawin.kernel_options().anchor == 2
    assert not dataclasses.replace(config.tawin, enabled=False).moves


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 100])
def test_a_moving_anchor_starts_and_ends_at_its_very_values(steps: int) -> None:
    tawin = TAWinConfig(anchor=0.1, anchor_start=7.3)
    anchors = [tawin.at_step(step, steps).anchor for step in range(steps)]
    assert anchors[0] == (7.3 if steps > 1 else 0.1)
    assert anchors[-1] == 0.1
    assert anchors == sorted(anchors, reverse=True)


def test_an_anchor_that_does_not_move_is_that_of_every_step() -> None:
    config = GRPOConfig(tawin=TAWinConfig(anchor=3.0))
    assert not config.tawin.moves
    assert config.at_step(0) == config.at_step(57) == config
