"""The estimated softmax against the whole one, alone and within the training forward."""

from __future__ import annotations

import math

import pytest
import torch

from tawin.config import CatalogConfig, Config, SFTConfig
from tawin.model.attention.causal import causal_log_probs
from tawin.model.sampled_softmax import sampled_log_probs

from ..models import tiny_model

P, V, H = 4, 9, 5


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """states [P, H], weight [V, H], bias [V], targets [P]."""
    torch.manual_seed(0)
    return torch.randn(P, H), torch.randn(V, H), torch.randn(V), torch.tensor([0, 3, 8, 3])


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_estimate_of_the_sum_has_no_bias(case, with_bias: bool) -> None:
    states, weight, bias, targets = case
    bias = bias if with_bias else None
    logits = torch.nn.functional.linear(states, weight, bias)
    of_targets = logits.gather(1, targets[:, None])[:, 0]
    draws = [sampled_log_probs(states, weight, bias, targets, 3) for _ in range(4000)]
    sums = torch.stack([(of_targets - drawn).exp() for drawn in draws])  # [draws, P]
    error = 4 * sums.std(0) / math.sqrt(len(sums))  # four standard errors; the seed is fixed
    assert (sums.mean(0) - logits.exp().sum(1)).abs().le(error).all()


def test_a_target_that_is_drawn_itself_counts_once(case) -> None:
    states, weight, bias, _ = case
    states.requires_grad_()
    torch.manual_seed(3)
    drawn = torch.randperm(V)[:1]
    torch.manual_seed(3)
    found = sampled_log_probs(states[:1], weight, bias, drawn, 1)
    found.sum().backward()
    assert found.tolist() == [0.0]
    assert not states.grad.any()


def test_a_sequence_has_estimated_log_probs_at_its_labels_alone() -> None:
    model = tiny_model("qwen2")
    input_ids = torch.tensor([[1, 5, 6, 7], [1, 8, 0, 0]])
    mask = (input_ids > 0).long()
    labels = torch.tensor([[-100, -100, 6, 7], [-100, 8, -100, -100]])
    whole = causal_log_probs(model, input_ids, mask, labels, "sdpa")[1]
    assert torch.equal(causal_log_probs(model, input_ids, mask, labels, "sdpa", 40)[1], whole)  # the vocabulary's size
    torch.manual_seed(0)
    draws = torch.stack([causal_log_probs(model, input_ids, mask, labels, "sdpa", 39)[1] for _ in range(50)])
    assert torch.equal(draws != 0, (labels[:, 1:] >= 0).expand(50, 2, 3))
    assert (draws.mean(0) - whole).abs().max() < 0.1  # all but one of 40 tokens are drawn


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        (8192, {}, 0),
        (8193, {}, 1024),
        (8193, {"model": "MODEL"}, 0),
        (8193, {"sft": SFTConfig(negatives=0)}, 0),
        (10, {"sft": SFTConfig(negatives=4)}, 4),
    ],
)
def test_a_large_catalogue_of_a_small_decoder_is_sampled_from(items: int, options: dict, expected: int) -> None:
    from types import SimpleNamespace

    from tawin.model.cross_entropy import sampled_negatives

    config = Config(catalog=CatalogConfig(item_tokens="item"), **options)
    catalog = SimpleNamespace(trie=SimpleNamespace(used_tokens=range(items)))
    assert sampled_negatives(catalog, config) == expected  # type: ignore[arg-type]
