"""The small setting: every item's score is the model's own, and beam search over the whole catalogue agrees."""

from __future__ import annotations

import pytest
import torch
from tawin_kernels.types import Normalizer

from experiments.theory.setting import Setting
from tawin.search.completions import beam_search

from .small_setting import small_setting


@pytest.mark.parametrize("mixed_lengths", [False, True])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_a_beam_as_wide_as_the_catalogue_finds_every_item_with_its_score(
    normalizer: Normalizer, mixed_lengths: bool
) -> None:
    setting = small_setting(mixed_lengths=mixed_lengths)
    lengths = (setting.token_ids[0] >= 0).sum(-1)
    assert bool((lengths != lengths[0]).any()) == mixed_lengths
    found = beam_search(
        setting.model, setting.input_ids, setting.attention_mask, setting.catalog.trie, 80, normalizer=normalizer
    )
    assert sorted(found.item_ids[0].tolist()) == list(range(80))
    scores = setting.item_scores(normalizer, batch=4)
    torch.testing.assert_close(found.scores.double(), scores.gather(1, found.item_ids), rtol=0, atol=1e-9)  # fp64


def test_over_the_trie_the_items_probabilities_sum_to_one() -> None:
    sums = small_setting().item_scores("trie").exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)  # fp64


def test_training_raises_the_log_p_of_the_items_that_come_next() -> None:
    def mean_score(setting: Setting) -> float:
        return float(setting.item_scores("vocab").gather(1, setting.targets[:, None]).mean())

    untrained, trained = (small_setting(steps=steps, prompts=60) for steps in (0, 40))
    assert mean_score(trained) > mean_score(untrained) + 0.5
