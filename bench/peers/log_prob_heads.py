"""From hidden states to the log-probs of given tokens, as users would compute them today.

Every head is a function of hidden [T, H], lm_head_weight [V, H], token_ids int64 [T] and a temperature; it returns
log-probs [T], differentiable in the first two. What is another package's is called, not copied, and imported when it
is asked for: `log_prob_head` raises MissingPeer where a package or the device for it is missing. Every head takes one
row a token, whether rows repeat or have no gradient: none knows of either.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from tawin_kernels import reference
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

TRL_WORDS_AT_ONCE = 32_768  # what its trainers pass

LogProbHead = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class MissingPeer(Exception):
    """A peer that cannot run here; the message says what it needs."""


def log_prob_head(name: str, device: torch.device) -> LogProbHead:
    """One of LOG_PROB_HEADS for tensors on the device."""
    return LOG_PROB_HEADS[name](device)


def imported(module: str, requirement: str) -> Any:
    """The module, or MissingPeer with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeer(f"{module} cannot be imported ({error}): pip install '{requirement}'") from error


def _reference_head(device: torch.device) -> LogProbHead:
    """Our own specification in plain PyTorch: pieces of 2^25 logits, in fp32."""
    return lambda hidden, weight, token_ids, temperature: reference.linear_log_probs(
        hidden, weight, token_ids, temperature=temperature
    )


def _compiled_head(device: torch.device) -> LogProbHead:
    if device.type != "cuda":
        raise MissingPeer(
            "torch.compile is a peer on CUDA only: on the CPU compilation takes longer than the benchmark"
        )
    return compiled_chunks("inductor")


def compiled_chunks(backend: str, rows_at_once: int = 2048) -> LogProbHead:
    """The log-softmax of a few rows at a time, given to torch.compile; the backward pass computes each piece again.

    As much as an engineer gets without writing a kernel. The logits are rounded to the dtype of the states, as the
    matrix library gives them; a trained head's gradient is the sum of the pieces' in that dtype.
    """

    def piece(hidden: Tensor, weight: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
        logits = linear(hidden, weight).float() / temperature  # [rows_at_once, V]
        return logits.gather(-1, token_ids[:, None]).squeeze(-1) - logits.logsumexp(-1)

    compiled: Any = torch.compile(piece, backend=backend, fullgraph=True)

    def head(hidden: Tensor, weight: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
        pieces = zip(hidden.split(rows_at_once), token_ids.split(rows_at_once), strict=True)
        return torch.cat(
            [checkpoint(compiled, states, weight, ids, temperature, use_reentrant=False) for states, ids in pieces]
        )

    return head


def _torch_head(device: torch.device) -> LogProbHead:
    """torch's own linear_cross_entropy, since 2.13. It takes no temperature, so the states are divided by it."""
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise MissingPeer(f"torch {torch.__version__} has no linear_cross_entropy: pip install 'torch>=2.13'")
    return lambda hidden, weight, token_ids, temperature: (
        -torch.nn.functional.linear_cross_entropy(
            hidden if temperature == 1.0 else hidden / temperature, weight, token_ids, reduction="none"
        )
    )


def _trl_head(device: torch.device) -> LogProbHead:
    """TRL 1.16: tiles of 4,096 tokens x 32,768 words through the matrix library, rounded to the dtype of the states.

    Its GRPOTrainer asks for the entropy too; here the log-probs alone, which is less work.
    """
    trl = imported("trl.kernels", "trl>=1.16")
    return lambda hidden, weight, token_ids, temperature: trl.ChunkedLogProbFunction.apply(
        hidden, weight, None, token_ids, temperature, TRL_WORDS_AT_ONCE, None, 1.0, ()
    )[0]


def _liger_head(device: torch.device) -> LogProbHead:
    """Liger's fused linear scaled cross-entropy: a CuTe kernel for bf16 on sm_90, nothing elsewhere on CUDA.

    On the CPU its own replacement in PyTorch runs, which shows that it is called as it should be and is no peer. The
    head's gradient is computed whether it is wanted or not.
    """
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) != (9, 0):
            raise MissingPeer("Liger's fused scaled cross-entropy has its kernel for compute capability 9.0 only")
        imported("cutlass.cute", "liger-kernel[cutedsl]>=0.8.5")
    liger = imported("liger_kernel.ops.fused_linear_scaled_cross_entropy", "liger-kernel>=0.8.5")
    cross_entropy = liger.LigerFusedLinearScaledCrossEntropyFunction
    return lambda hidden, weight, token_ids, temperature: -cross_entropy.apply(hidden, weight, token_ids, temperature)


def _quack_head(device: torch.device) -> LogProbHead:
    """quack's cross-entropy (CuTe) on the logits of all tokens, whose gradient it writes over them.

    Its chunked head (`chunked_linear_cross_entropy`), which keeps no logits, returns their sum or mean alone: a policy
    gradient has a coefficient per token. It takes no temperature, so the states are divided by it.
    """
    if device.type != "cuda":
        raise MissingPeer("quack runs on CUDA only")
    if torch.cuda.get_device_capability(device)[0] not in (9, 10, 12):
        raise MissingPeer("quack has kernels for compute capabilities 9, 10 and 12 only")
    quack = imported("quack.linear_cross_entropy", "quack-kernels>=0.6")
    return lambda hidden, weight, token_ids, temperature: (
        -quack.linear_cross_entropy_func(
            hidden if temperature == 1.0 else hidden / temperature,
            weight,
            None,
            token_ids,
            reduction="none",
            inplace_backward=True,
        )
    )


def _cut_cross_entropy_head(device: torch.device) -> LogProbHead:
    """Cut Cross-Entropy with its defaults: tiles on chip, blocks of the gradient below bf16's resolution left out.

    It takes no temperature, so the states are divided by it. Gradients want bf16 or fp16, and CUDA.
    """
    if device.type != "cuda":
        raise MissingPeer("Cut Cross-Entropy runs on CUDA only")
    cut_cross_entropy = imported("cut_cross_entropy", "cut-cross-entropy>=25.1.1")
    return lambda hidden, weight, token_ids, temperature: (
        -cut_cross_entropy.linear_cross_entropy(
            hidden if temperature == 1.0 else hidden / temperature, weight, token_ids, reduction="none"
        )
    )


LOG_PROB_HEADS: dict[str, Callable[[torch.device], LogProbHead]] = {
    "reference": _reference_head,
    "compiled": _compiled_head,
    "torch": _torch_head,
    "trl": _trl_head,
    "liger": _liger_head,
    "quack": _quack_head,
    "cut_cross_entropy": _cut_cross_entropy_head,
}
