"""Supervised fine-tuning: the order of its data, and what each interaction counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tawin.config import Config, SFTConfig
from tawin.data.ragged import Ragged
from tawin.train.sft import _backward, epoch_batches

from ..models import tiny_model
from ..small_groups import small_catalog


def test_an_epoch_holds_every_row_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 12, 1000)
    batches = list(epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = np.mean([np.ptp(lengths[rows]) for rows in batches])
    assert spread < 1.5  # random batches of eight spread over some eight lengths
    again = list(epoch_batches(lengths, 8, np.random.default_rng(1)))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    other = np.concatenate(list(epoch_batches(lengths, 8, np.random.default_rng(2))))
    assert not np.array_equal(np.concatenate(batches), other)


class Alone:
    """A stage of one process."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.processes, self.device = model, self, torch.device("cpu")

    def share(self, count: int) -> slice:
        return slice(count)

    def sums(self, *values: float) -> list[float]:
        return [float(value) for value in values]

    def backward(self, work: Any, *arguments: Any, is_last: bool) -> tuple[Tensor, ...]:
        found = work(self.model, *arguments)
        found[0].backward()
        return tuple(each.detach() for each in found)


@pytest.mark.parametrize("weights", [None, np.arange(1, 10, dtype=np.float32) / 4])
def test_a_token_counts_by_the_weight_of_its_interaction(weights: np.ndarray | None) -> None:
    catalog, model = small_catalog(), tiny_model("qwen2")
    sequences = [[0, 1, 2], [3, 4], [5, 6, 1, 0]]
    windows = replace(Ragged.of([np.array(each) for each in sequences]), weights=weights)
    stage: Any = Alone(model)
    config = Config(sft=SFTConfig(batch_size=2))
    loss = _backward(stage, catalog, windows, np.ones(3, dtype=np.int64), np.arange(3), config)
    gradient = model.get_input_embeddings().weight.grad.clone()

    model.zero_grad()
    each_weight = iter([1.0] * 9 if weights is None else weights.tolist())
    total, weight_of_all = torch.zeros(()), 0.0
    for items in sequences:
        tokens = [[token for token in catalog.token_ids[item].tolist() if token >= 0] for item in items]
        flat = [1, *(token for each in tokens for token in each)]  # the catalogue's prefix, then the items
        log_probs = model(input_ids=torch.tensor([flat])).logits[0].log_softmax(-1)
        place = 1
        for index, each in enumerate(tokens):
            weight = next(each_weight)
            for token in each:
                if index >= 1:
                    total, weight_of_all = total - weight * log_probs[place - 1, token], weight_of_all + weight
                place += 1
    (total / weight_of_all).backward()
    assert loss == pytest.approx(float(total) / weight_of_all, rel=1e-5)
    torch.testing.assert_close(gradient, model.get_input_embeddings().weight.grad, atol=1e-6, rtol=1e-4)
