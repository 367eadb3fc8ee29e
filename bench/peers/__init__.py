"""The peers' ways of doing the same work; tests/bench/peers hold them to our answers.

They are written anew, but for LM heads and losses that have a package of their own, which is called.
"""

from .dense_mask import DenseMaskTrie, dense_mask_step
from .full_softmax import full_softmax_step
from .generate import PeerBeams, PrefixTable, generate_beam_search
from .group_losses import GROUP_LOSSES, LossOptions, group_loss
from .log_prob_heads import LOG_PROB_HEADS, MissingPeer, compiled_chunks, log_prob_head
from .repeated_prompt import repeated_prompt_log_probs
from .torch_advantages import torch_group_advantages

__all__ = [
    "GROUP_LOSSES",
    "LOG_PROB_HEADS",
    "DenseMaskTrie",
    "LossOptions",
    "MissingPeer",
    "PeerBeams",
    "PrefixTable",
    "compiled_chunks",
    "dense_mask_step",
    "full_softmax_step",
    "generate_beam_search",
    "group_loss",
    "log_prob_head",
    "repeated_prompt_log_probs",
    "torch_group_advantages",
]
