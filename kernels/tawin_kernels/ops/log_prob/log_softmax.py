"""log p from a logit and the statistics of its row: at most 0, and as exact for a confident token as for any other.

    log p_t = (z_t - max_v z_v) / temperature - log sum_v exp((z_v - max_v z_v) / temperature)

The maximum and the logarithm of the sum are kept apart: their sum, the logsumexp, is as large as the logits, and at
705 its last place is 6e-5, which is more than all of log p. For the same reason the maximum is subtracted before
anything is multiplied: z times scale minus a rounded maximum times scale, fused, is not 0 for the maximum itself.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log_softmax_of(logits, maxima, log_sums, scale):
    """fp32 log p of logits before the temperature; maxima, likewise, and log_sums are those of the logits' rows.

    A logit that was added up in another order than the row's may lie beside the maximum where it is the maximum. Above
    it is rounding. Below: while log_sum is small, the row has one token of p = exp(-log_sum) > 2/3, and any other lies
    below it by -log(log_sum) at least. Nearer than half of that is the token itself.
    """
    distances = (logits - maxima) * scale
    is_maximum = (log_sums < 0.4) & (distances > 0.5 * tl.log(tl.maximum(log_sums, 5.96e-8)))
    return tl.where(is_maximum | (distances > 0.0), 0.0, distances) - log_sums
