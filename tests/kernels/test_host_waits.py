"""No public op waits for the device but where its documentation says so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie, beam_step, group_advantages, grpo_loss, linear_log_probs, tawin_grpo_loss
from tawin_kernels.launch import Target, recorded_launches
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

B, G, L, H, V = 2, 4, 3, 64, 300
META = torch.device("meta")


class OnOneDevice(TorchDispatchMode):
    """Fails where PyTorch copies from the host: a tensor of the host beside one of the device, `mask[index] = True`.

    What reads a value back, such as `nonzero` or `item`, fails on tensors without memory by itself.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, f"{function} takes a tensor of the host"
        if function.overloadpacket.__name__ == "index_put_":
            assert args[2].dim() > 0, "a number is put at indexes: on a GPU it is copied there, and the copy waited for"
        return function(*args, **(kwargs or {}))


def ops(device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls that must not wait; inputs are made here, before."""

    def floats(*size: int) -> torch.Tensor:
        return torch.rand(size, device=device)

    def ints(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int64, device=device)

    mask = torch.ones(B, G, L, dtype=torch.bool, device=device)
    rewards, log_probs = floats(B, G), floats(B, G, L).requires_grad_()
    hidden, weight = floats(B, G, L, H).requires_grad_(), floats(V, H)
    tokens, rows, shared = ints(B, G, L), ints(B, G, L), floats(5, H)
    group = (tokens, mask, rewards, rewards)
    return {
        "log-probs": partial(linear_log_probs, hidden, weight, tokens),
        "log-probs of rows": partial(linear_log_probs, shared, weight, tokens, rows=rows, with_entropy=True),
        "advantages": partial(group_advantages, rewards, rewards),
        "loss": lambda: grpo_loss(log_probs, mask, rewards).loss.backward(),
        "loss of hidden states": partial(tawin_grpo_loss, hidden, weight, *group),
        "loss without the dead": partial(
            tawin_grpo_loss, hidden, weight.requires_grad_(), *group, rows=None, all_log_probs=False
        ),
    }


NAMES = list(ops(META))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_copied_from_the_host(name: str) -> None:
    with recorded_launches(Target("cuda", "90")):
        call = ops(META)[name]
        with OnOneDevice():
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_ops_do_not_wait_for_the_gpu(name: str) -> None:
    call = ops(torch.device("cuda"))[name]
    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_a_beam_step_does_not_wait_for_the_gpu(normalizer: Any) -> None:
    device = torch.device("cuda")
    trie = ItemTrie.from_sequences(torch.randint(0, V, (50, 3))).to(device)
    trie.prepare()
    hidden, weight = torch.rand(B, G, H, device=device), torch.rand(V, H, device=device)
    nodes, scores = torch.zeros(B, G, dtype=torch.int64, device=device), torch.zeros(B, G, device=device)
    beam_step(hidden, weight, trie, nodes, scores, G, normalizer=normalizer)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        beam_step(hidden, weight, trie, nodes, scores, G, normalizer=normalizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
