"""What processes tell each other and what the engine wraps, seen by one; ../test_distributed.py starts two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tawin.run.processes import EngineModule, Processes, is_sharded, like, make_accelerator, whole

from ..models import tiny_model


@pytest.mark.parametrize(("size", "count"), [(8, 2), (7, 3), (2, 4), (0, 2)])
def test_shares_are_in_order_leave_nothing_out_and_differ_by_one_at_most(size: int, count: int) -> None:
    shares = [list(range(size))[Processes(rank, count).share(size)] for rank in range(count)]
    assert [number for share in shares for number in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_asks_itself() -> None:
    alone = Processes()
    assert alone.ask_first(lambda: 3) == alone.in_turn(lambda: 3) == 3
    with pytest.raises(ValueError, match="no such thing"):
        alone.ask_first(lambda: int("no such thing"))
    assert alone.sums(1, 2.5, torch.tensor(3)) == [1.0, 2.5, 3.0]


def test_the_engine_runs_any_work_and_names_the_layers_to_shard() -> None:
    model = tiny_model("qwen2")
    engine = EngineModule(model)
    assert engine(lambda causal_lm: causal_lm is model)
    assert engine._no_split_modules == ["Qwen2DecoderLayer"]
    assert not is_sharded(engine)


def test_tensors_that_are_not_sharded_are_whole_as_they_are() -> None:
    layer = nn.Linear(2, 3)
    found = whole(layer.named_parameters())
    assert found.keys() == {"weight", "bias"}
    assert found["weight"].data_ptr() == layer.weight.data_ptr() and not found["weight"].requires_grad
    assert like(found["bias"], layer.bias) is found["bias"]
    assert whole(layer.named_parameters(), Processes(rank=1)) == {}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("FSDP_VERSION", "1", "expected FSDP2 .* got FSDP1"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use --policy.checkpoint-activations"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "got SIZE_BASED_WRAP"),
        ("FSDP_OFFLOAD_PARAMS", "true", "expected no --fsdp_offload_params"),
    ],
)
def test_an_engine_that_would_train_wrongly_is_refused(
    option: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", option: value}.items():
        monkeypatch.setenv(name, setting)
    with pytest.raises(ValueError, match=message):
        make_accelerator()
