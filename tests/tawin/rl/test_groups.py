"""Groups: what is cut when some are taken."""

from __future__ import annotations

import torch

from tawin.config import GRPOConfig

from ..small_groups import rolled_out


def test_taking_groups_cuts_the_padding_that_no_prompt_needs() -> None:
    _, groups = rolled_out(GRPOConfig(group_size=3), [0, 1, 2, 3])
    lengths = groups.attention_mask.sum(1)
    short = lengths.argmin()[None]
    taken = groups.take(short)
    assert taken.input_ids.shape == (1, int(lengths.min()))
    assert taken.attention_mask.all()
    assert torch.equal(taken.input_ids[0], groups.input_ids[short[0]][groups.attention_mask[short[0]].bool()])
