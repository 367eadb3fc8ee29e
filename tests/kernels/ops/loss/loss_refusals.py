"""Bad input that both losses refuse: their tensors are [2, 3, 4] here."""

from __future__ import annotations

import math

import torch

NAN = math.nan
INF = math.inf


def empty_meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# What is changed in good arguments, the error, and a pattern that its message matches.
LOSS_REFUSALS = [
    ({"mask": torch.ones(2, 3, 4)}, TypeError, "mask: expected dtype bool, got float32"),
    ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"mask: expected shape \[B, G, L\]"),
    ({"mask": empty_meta(2, 3, 4, dtype=torch.bool)}, ValueError, "mask: expected device cpu"),
    ({"old_log_probs": torch.zeros(2, 3, 5)}, ValueError, r"old_log_probs: .*\[2, 3, 4\], got \[2, 3, 5\]"),
    ({"old_log_probs": torch.zeros(2, 3, 4).long()}, TypeError, "old_log_probs: expected dtype"),
    ({"old_log_probs": empty_meta(2, 3, 4)}, ValueError, "old_log_probs: expected device"),
    ({"ref_log_probs": torch.zeros(2, 3)}, ValueError, "ref_log_probs: expected shape"),
    ({"ref_log_probs": 0.0}, TypeError, "ref_log_probs: expected a tensor"),
    ({"ref_log_probs": empty_meta(2, 3, 4)}, ValueError, "ref_log_probs: expected device"),
    ({"loss_type": "ppo"}, ValueError, "loss_type: expected one of 'grpo', .*'bnpo', 'cispo', got 'ppo'"),
    ({"loss_type": "cispo"}, ValueError, "epsilon_high: expected a number >= 1 with loss_type 'cispo'.* got 0.2"),
    ({"importance_level": "group"}, ValueError, "importance_level: expected one of 'token', 'sequence', got 'group'"),
    ({"epsilon_low": -0.1}, ValueError, "epsilon_low: expected a finite number >= 0, got -0.1"),
    ({"epsilon_low": NAN}, ValueError, "epsilon_low"),
    ({"epsilon_high": -0.1}, ValueError, "epsilon_high"),
    ({"epsilon_high": "0.2"}, TypeError, "epsilon_high: expected a number"),
    ({"beta": 0.1}, ValueError, "ref_log_probs: expected a tensor .*beta 0.1, got None"),
    ({"beta": -0.1}, ValueError, "beta"),
    ({"beta": INF}, ValueError, "beta"),
    ({"valid": torch.ones(2, 3)}, TypeError, "valid: expected dtype bool"),
    ({"valid": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"valid: .*\[2, 3\], got \[3, 2\]"),
    ({"valid": empty_meta(2, 3, dtype=torch.bool)}, ValueError, "valid: expected device"),
    ({"denominator": 0}, ValueError, "denominator: expected a finite number > 0, got 0"),
    ({"denominator": NAN}, ValueError, "denominator"),
    ({"denominator": "6"}, TypeError, "denominator"),
    ({"denominator": torch.tensor(0.0)}, ValueError, "denominator: expected a finite number > 0"),
    ({"denominator": torch.ones(2)}, ValueError, r"denominator: expected shape \[\]"),
    ({"denominator": torch.tensor(True)}, TypeError, "denominator: expected dtype"),
    ({"denominator": empty_meta()}, ValueError, "denominator: expected device"),
]
