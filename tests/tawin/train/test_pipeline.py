"""What a stage begins with, and what is said of a run that ends below a baseline."""

import pytest
import torch

from tawin.config import Config, PolicyConfig
from tawin.train.pipeline import behind_counts, trainable
from tests.tawin.models import tiny_model
from tests.tawin.small_groups import small_catalog


def test_adapters_are_drawn_from_the_seed_whatever_random_numbers_were_used_before():
    def adapters(seed: int, used: int) -> torch.Tensor:
        model = tiny_model("qwen2", tie_word_embeddings=False)
        torch.rand(used)
        model = trainable(model, small_catalog(), Config(seed=seed, policy=PolicyConfig(lora_rank=2)))
        return torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora_A" in name])

    first = adapters(0, used=0)
    assert torch.equal(adapters(0, used=4928), first)
    assert not torch.equal(adapters(1, used=0), first)


@pytest.mark.parametrize(
    ("results", "is_behind"),
    [
        ({}, False),
        ({"sft": 0.1}, False),  # a run of before, without baselines
        ({"counts": 0.2, "sft": 0.1}, True),
        ({"counts": 0.2, "sft": 0.1, "grpo": 0.2}, False),
        ({"counts": 0.2, "sft": 0.3, "grpo": 0.1}, True),  # the model of the run is GRPO's
    ],
)
def test_a_run_says_so_where_its_last_model_is_below_counts_on_valid(results, is_behind):
    parts = {name: {"valid": {"recall@3": value}, "test": {"recall@3": 1.0}} for name, value in results.items()}
    if "counts" in parts:
        parts["baselines"] = {"counts": parts.pop("counts")}
    said = behind_counts(parts, "recall@3")
    assert bool(said) == is_behind
    if is_behind:
        assert "valid recall@3 0.1000, 0.2000" in said
