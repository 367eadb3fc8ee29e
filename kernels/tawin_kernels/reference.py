"""Every op in plain PyTorch: the specification of the kernels, and what runs on the CPU.

The mathematics is that of arXiv 2604.22504 in the notation B prompts, G completions per prompt, L tokens, H hidden
size, V vocabulary. Each op stands in its folder in `ops`, beside the kernels. The functions have the signatures of the
public ops and check their arguments as those do, once, where they enter; `impl` is "auto" or "reference". Floating
inputs are accumulated in fp32, and in fp64 where they are fp64; advantages always in fp64.
"""

from .ops.advantage.reference import group_advantages, tawin_weights
from .ops.beam_step.reference import beam_step
from .ops.log_prob.reference import linear_log_probs
from .ops.loss.reference import grpo_loss, tawin_grpo_loss

__all__ = ["beam_step", "group_advantages", "grpo_loss", "linear_log_probs", "tawin_grpo_loss", "tawin_weights"]
