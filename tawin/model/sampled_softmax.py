"""The softmax over a large vocabulary, estimated from a sample of it. Called by SFT and by the baselines' training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def sampled_log_probs(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, negatives: int) -> Tensor:
    """log softmax(states @ weight.T + bias) at `targets`, its sum estimated: [P], differentiable.

    The part of the sum that the other rows of `weight` have is estimated, without bias, from `negatives` of them drawn
    uniformly without replacement, the same for all targets of a call. A draw stands for V / negatives rows, so that
    log(V / negatives), minus the log of its chance, is added to its logit (Bengio and Senécal 2008; sampled softmax).
    Where a target is drawn itself, it counts once.

    Args:
        states: [P, H] fp32. weight: [V, H]. bias: [V] or None.
        targets: int64 [P], rows of weight.
        negatives: M, 1 <= M < V; torch's global generator draws them.
    """
    vocabulary = len(weight)
    drawn = torch.randperm(vocabulary, device=states.device)[:negatives]  # [M]
    weight_of_draw = math.log(vocabulary / negatives)
    drawn_bias = weight_of_draw if bias is None else bias[drawn] + weight_of_draw
    with torch.autocast(states.device.type, enabled=False):
        logits = functional.linear(states, weight[drawn]) + drawn_bias  # [P, M]
        target_logits = (states * functional.embedding(targets, weight)).sum(-1)  # [P]
    if bias is not None:
        target_logits = target_logits + bias[targets]
    column = torch.full((vocabulary,), -1, device=states.device)
    column[drawn] = torch.arange(negatives, device=states.device)
    column = column[targets]  # [P], of the target among those drawn, -1 for none
    among = (column >= 0).nonzero()[:, 0]
    # It counts nothing there. Not -inf: a lone one would make NaN gradients.
    logits[among, column[among]] = torch.finfo(logits.dtype).min
    return target_logits - torch.logaddexp(target_logits, logits.logsumexp(dim=1))
