"""Log-probabilities of given tokens in plain PyTorch; the LM head in pieces is in `lm_head`."""

from __future__ import annotations

import torch

from ...arguments import Impl
from ...checks import check_linear_log_probs
from ...dispatch import reference_op
from ...trie import ItemTrie
from ...types import Normalizer
from .lm_head import token_entropies, token_log_probs


@reference_op(check_linear_log_probs)
def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
    with_entropy: bool = False,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax((hidden @ lm_head_weight.T + bias) / temperature) at token_ids (`tawin_kernels.linear_log_probs`)."""
    log_probs = token_log_probs(
        hidden,
        lm_head_weight,
        bias,
        token_ids,
        temperature,
        rows=rows,
        normalizer=normalizer,
        trie=trie,
        nodes=nodes,
    )
    if not with_entropy:
        return log_probs
    return log_probs, token_entropies(hidden, lm_head_weight, bias, token_ids, temperature, rows, trie, nodes)
