"""Tensors whose elements are not in memory of their own are refused, by the name of the argument and with the cure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tawin_kernels
import torch
import torch.distributed as dist
from tawin_kernels import ItemTrie, TAWin, reference
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

TRIE = ItemTrie.from_sequences([[0, 1], [2, 3]])
MASK, IDS = torch.ones(2, 3, 2, dtype=torch.bool), torch.zeros(2, 3, 2, dtype=torch.int64)
HIDDEN, WEIGHT, BIAS, ROWS = torch.randn(2, 3, 2, 4), torch.randn(5, 4), torch.randn(5), torch.randn(12, 4)
GROUPS, LOG_PROBS, VALID = torch.eye(2, 3), -torch.ones(2, 3, 2), torch.ones(2, 3, dtype=torch.bool)
OF_TRIE = {"rows": IDS, "normalizer": "trie", "trie": TRIE, "nodes": IDS}

# Op -> every argument that it takes; each tensor among them is replaced in turn.
CALLS = {
    "beam_step": dict(
        hidden=HIDDEN[:, :, 0],
        lm_head_weight=WEIGHT,
        trie=TRIE,
        nodes=IDS[..., 0],
        scores=GROUPS,
        beam_width=2,
        bias=BIAS,
    ),
    "linear_log_probs": dict(hidden=ROWS, lm_head_weight=WEIGHT, token_ids=IDS, bias=BIAS, **OF_TRIE),
    "tawin_weights": dict(scores=GROUPS, negatives=VALID, tawin=TAWin()),
    "group_advantages": dict(rewards=GROUPS, scores=GROUPS, tawin=TAWin(), valid=VALID),
    "grpo_loss": dict(
        log_probs=LOG_PROBS,
        mask=MASK,
        advantages=GROUPS,
        old_log_probs=LOG_PROBS,
        ref_log_probs=LOG_PROBS,
        beta=0.1,
        valid=VALID,
        denominator=torch.tensor(2.0),
    ),
    "tawin_grpo_loss": dict(
        hidden=ROWS,
        lm_head_weight=WEIGHT,
        token_ids=IDS,
        mask=MASK,
        rewards=GROUPS,
        scores=GROUPS,
        old_log_probs=LOG_PROBS,
        ref_log_probs=LOG_PROBS,
        beta=0.1,
        bias=BIAS,
        valid=VALID,
        denominator=torch.tensor(2.0),
        **OF_TRIE,
    ),
}
TENSORS = [(op, name) for op, call in CALLS.items() for name, value in call.items() if isinstance(value, Tensor)]
HEADS = [(op, name) for op, name in TENSORS if name in ("lm_head_weight", "bias")]


class Named(Tensor):
    """A subclass like any other's."""


class Marked(nn.Parameter):
    """A parameter that says more of itself, as inference engines have them."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[object]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def call(op: str, impl: str, **changes) -> None:
    getattr(reference if impl == "reference" else tawin_kernels, op)(**{**CALLS[op], **changes}, impl=impl)


@pytest.mark.parametrize(("op", "name"), TENSORS)
@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_every_tensor_of_every_op_has_to_be_a_plain_and_dense_one(op, name, impl, mesh):
    value = CALLS[op][name]
    with pytest.raises(
        TypeError, match=rf"^{name}: expected a plain tensor .*got a DTensor; pass {name}\.full_tensor\(\)"
    ):
        call(op, impl, **{name: distribute_tensor(value, mesh, [Replicate()])})
    with pytest.raises(TypeError, match=f"^{name}: expected a plain tensor .*got a Named; convert it"):
        call(op, impl, **{name: value.as_subclass(Named)})
    with pytest.raises(
        TypeError, match=rf"^{name}: expected a dense tensor .*got layout sparse_coo; pass {name}\.to_dense"
    ):
        call(op, impl, **{name: value.to_sparse()})
    with (
        FakeTensorMode() as mode,
        pytest.raises(TypeError, match=f"^{name}: expected a plain tensor .*got a FakeTensor; ops cannot be exported"),
    ):
        call(op, impl, **{name: mode.from_tensor(value)})
    call(op, impl, **{name: value})


@pytest.mark.parametrize(("op", "name"), HEADS)
@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_parameters_are_plain_but_not_those_that_lie_on_other_ranks(op, name, impl, mesh):
    value = CALLS[op][name]
    for parameter in (nn.Parameter(value), Marked(value), nn.Buffer(value)):
        call(op, impl, **{name: parameter})
    with pytest.raises(TypeError, match=rf"^{name}: .*got a DTensor; pass {name}\.full_tensor\(\)"):
        call(op, impl, **{name: nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]))})
    call(op, impl, **{name: distribute_tensor(value, mesh, [Shard(0)]).full_tensor()})
    with pytest.raises(ValueError, match=rf"^{name}: .*got \[0\]; .*ZeRO-3 .*GatheredParameters\(\[{name}\]\)"):
        call(op, impl, **{name: nn.Parameter(torch.empty(0))})
