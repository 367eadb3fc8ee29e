"""Presets have the settings that they promise."""

from __future__ import annotations

from tawin.config.presets import PRESETS


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


def test_presets_for_pretrained_models_have_learning_rates_that_leave_them_whole() -> None:
    for name in ("paper", "cpu-pretrained"):
        preset = PRESETS[name]
        assert preset.model is not None
        assert 1e-5 <= preset.grpo.learning_rate <= preset.sft.learning_rate <= 3e-4


def test_the_cpu_preset_for_pretrained_models_searches_little() -> None:
    config = PRESETS["cpu-pretrained"]
    assert (config.evaluation.beam_width, config.evaluation.valid_users) == (10, 500)
    assert config.catalog.item_tokens == "item" and config.prompt.is_plain
