"""The types of group loss, one row each: the only place that says what a type is.

Kernel, reference, checks, the trainer's config and denominator, and the integrations read `LOSS_KINDS`. A type that
combines what is here already is a row. A new formula of a token's loss is a column more, read by one branch in
`group_loss_kernel` and one in `reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

LossType = Literal["grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo"]
ImportanceLevel = Literal["token", "sequence"]


@dataclass(frozen=True)
class LossKind:
    """How the losses of tokens are made and summed up."""

    counts: Literal["sequences", "tokens", "positions"]
    """What the sum is divided by: completions, their tokens, or completions x L."""
    mean_over_tokens: bool = False
    """Each completion adds the mean over its tokens; else all tokens add alike."""
    sequence_level: bool = False
    """One ratio per completion, whatever the importance level."""
    caps_ratio: bool = False
    """-min(rho, epsilon_high) A logp with a constant minimum (arXiv 2506.13585), in place of the clipped surrogate."""

    def denominator(self, sequences: Any, tokens: Any, length: int) -> Any:
        """What the summed loss of so many completions and tokens is divided by, with L = length: ints or tensors."""
        return {"sequences": sequences, "tokens": tokens, "positions": sequences * length}[self.counts]


LOSS_KINDS: dict[str, LossKind] = {
    "grpo": LossKind("sequences", mean_over_tokens=True),  # arXiv 2402.03300
    "dapo": LossKind("tokens"),  # arXiv 2503.14476
    "dr_grpo": LossKind("positions"),  # arXiv 2503.20783
    "gspo": LossKind("sequences", mean_over_tokens=True, sequence_level=True),  # arXiv 2507.18071
    "bnpo": LossKind("tokens"),  # TRL's: the tokens of a micro-batch
    "cispo": LossKind("tokens", caps_ratio=True),
}
