"""Where groups are not finite: they are run once more, without gradient and dropout. Called by the guard in `step`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tawin_kernels import group_advantages, linear_log_probs
from torch import Tensor, nn

from ..config import GRPOConfig
from ..model.backbone import backbone
from ..model.policy import evaluating
from ..model.token_tree import completion_states
from ..run.guards import Finding, of_groups
from .groups import Groups


def count_wrong(batches: list[Groups], expected: int) -> Tensor:
    """How many completions have a reward or score that is not finite, or are missing although the catalogue has them.

    A search leaves out what has a score of NaN or -inf: of a catalogue of `expected` or more sequences a completion can
    be missing for no other reason. A tensor: nothing waits for the device.
    """
    wrong = [~(groups.rewards.isfinite() & groups.scores.isfinite()) & groups.valid for groups in batches]
    missing = [(expected - groups.valid.sum(1)).clamp_min(0) for groups in batches]
    return torch.stack([part.sum() for part in (*wrong, *missing)]).sum()


@torch.no_grad()
def look_into_groups(
    model: nn.Module, parts: list[Groups], reference: Callable[[Groups], Tensor] | None, config: GRPOConfig
) -> list[Finding]:
    """Rewards, scores, hidden states, log-probs and advantages of groups."""
    found: list[Finding] = []
    for groups in parts:
        found += _look_into(model, groups, reference, config)
    return found


def _look_into(
    model: nn.Module, groups: Groups, reference: Callable[[Groups], Tensor] | None, config: GRPOConfig
) -> list[Finding]:
    valid, mask, users = groups.valid, groups.mask, groups.users
    with evaluating(model):
        states, rows = completion_states(
            backbone(model), groups.input_ids, groups.attention_mask, groups.token_ids
        )  # [R, H], [B, G, L]
        weight, bias = backbone(model).head_in(states.dtype)
        log_probs = linear_log_probs(
            states,
            weight,
            groups.token_ids,
            bias=bias,
            rows=rows,
            normalizer=groups.normalizer,
            trie=groups.trie,
            nodes=groups.nodes,
        )
    is_read = mask.clone()
    is_read[..., 0] = True  # the prompt's end, whether or not there are completions
    is_wrong = (~states.isfinite()).any(-1)  # bool [R]
    found = [
        *of_groups("rewards", ~groups.rewards.isfinite() & valid, users),
        *of_groups("scores", ~groups.scores.isfinite() & valid, users),
        *of_groups("hidden", is_wrong[rows] & is_read, users),
        *of_groups("log_probs", ~log_probs.isfinite() & mask, users),
    ]
    if reference is not None:
        found += of_groups("ref_log_probs", ~reference(groups).isfinite() & mask, users)
    if not any(one.tensor in ("rewards", "scores") for one in found):
        tawin = config.tawin.kernel_options() if config.tawin.enabled else None
        advantages = group_advantages(
            groups.rewards, groups.scores, tawin=tawin, normalize_std=config.normalize_std, valid=valid
        )
        found += of_groups("advantages", ~advantages.isfinite(), users)
    return found
