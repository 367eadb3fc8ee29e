"""Lemma 3.1: with a binary reward and random negatives, GRPO's gradient is that of the pairwise AUC margin.

Notation: s(Y) = 1/|Y| sum_j log p(y_j) is the score that the loss of type "grpo" sees (the mean over tokens); "dr_grpo"
sees log p(Y). A group of G has n+ hits and n- others. At rho = 1, no KL, gradient(-loss) = 1/G sum_i A_i grad s_i, and

    A_i = (r_i - n+/G) / D,   D = 1, or std + eps       so A = n-/(G D) for hits and -n+/(G D) for the others, hence
    sum_i A_i s_i = c (mean of s over the hits - mean of s over the others),   c = n+ n- / (G D)

Exact for every group, checked on `tawin_grpo_loss` through `rl.loss.group_loss` against autograd of the margin.
What it needs, and what is lost without it:
* the negatives uniform over the catalogue. Then the mean over groups tends to E[s(Y+) - s(Y-)] over all pairs as
  1 / sqrt(groups), which is measured. With completions drawn from the policy it tends to the margin against
  policy-weighted negatives instead; both cosines are measured.
* the same n+ in every group. c depends on it, so a batch of groups with different n+ weighs the users' margins by c.
* rho = 1: the first update after a rollout. Clipping and stale ratios are outside of the lemma.
* "AUC" read as its linear surrogate: the margin is not Pr[s+ > s-] and may rise where that falls. The cosine with the
  gradient of the smooth AUC, mean sigmoid(sharpness (s+ - s-)), which tends to the AUC as it sharpens, is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tawin_kernels import group_advantages
from tawin_kernels.ops.loss.types import LossType
from torch import Tensor

from tawin.config import GRPOConfig, TAWinConfig
from tawin.rl.groups import Groups
from tawin.rl.loss import group_loss, loss_denominator
from tawin.rl.rollout import roll_out
from tawin.search.completions import draw_uniforms, random_sequences

from .options import read, require
from .setting import Setting, make_setting

Result = tuple[dict[str, float], dict[str, list[float]]]
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo")
EPS = 1e-4  # added to the standard deviation, as in `group_advantages`


@dataclass(frozen=True)
class Options:
    """The small policy and how many groups are drawn."""

    items: int = 96
    users: int = 400
    codes: int = 8
    hidden_size: int = 32
    steps: int = 60
    """Training steps of the policy; 0: random weights."""
    prompts: int = 8
    group_size: int = 16
    groups: int = 16384
    """Groups drawn a prompt, at the end of the series, which doubles from 1 on."""
    sharpness: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Of the smooth AUC whose gradient the margin's is compared with."""

    def __post_init__(self) -> None:
        require(2 <= self.group_size <= self.items, "group_size", f"2..items ({self.items})", self.group_size)
        for name in ("users", "hidden_size", "prompts", "groups"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))


def run(options: dict[str, Any], seed: int) -> Result:
    """Values: "relative error, ..." of a group's gradient (exact claims; the largest over catalogues with items of one
    and of several lengths, and over loss types), "cosine, ..." (what the assumptions cost).

    Series, by the number of groups drawn a prompt ("groups"): "relative error" and "cosine" of the mean gradient of
    groups with random negatives with that of the full catalogue's margin; "sampled, AUC margin" and "sampled, policy
    margin": cosines of the mean gradient of groups drawn from the policy.
    """
    chosen = read(Options, options)
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, float] = {}
    for mixed in (True, False):  # the last one, where |Y| is the same for all, is used below as well
        setting = make_setting(
            users=chosen.users,
            items=chosen.items,
            codes=chosen.codes,
            hidden_size=chosen.hidden_size,
            steps=chosen.steps,
            prompts=chosen.prompts,
            seed=seed,
            mixed_lengths=mixed,
        )
        for name, value in _exact(setting, chosen, generator).items():
            values[name] = max(value, values.get(name, 0.0))
        if mixed:
            values["cosine, grpo and margin of log p, mixed lengths"] = _log_p(setting, chosen, generator)
    values |= _mixed_hits(setting, chosen, generator)
    limits, series = _limits(setting, chosen, generator)
    return values | limits, series


def margin_constant(hits: Tensor, group_size: int, normalize_std: bool) -> Tensor:
    """c: what a group's margin is multiplied by. hits: n+ of each group, [B], 1..G - 1."""
    hits = hits.double()
    others = group_size - hits
    std = (hits * others / (group_size * (group_size - 1))).sqrt()  # unbiased, of n+ ones and n- zeros
    return hits * others / group_size / (std + EPS if normalize_std else 1.0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def cosine(first: Tensor, second: Tensor) -> float:
    """Of the angle between two gradients."""
    return float(first @ second / (first.norm() * second.norm()))


def gradient(setting: Setting, objective: Tensor) -> Tensor:
    """Of a scalar with respect to all weights, flat; the graph is kept."""
    parameters = [p for p in setting.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective, parameters, retain_graph=True)
    return torch.cat([each.flatten() for each in found])


def loss_gradient(setting: Setting, groups: Groups, *, loss_type: LossType, normalize_std: bool) -> Tensor:
    """Of minus the trainer's loss."""
    config = replace(GRPOConfig(), loss_type=loss_type, normalize_std=normalize_std, tawin=TAWinConfig(enabled=False))
    loss = group_loss(setting.model, None, groups, config, loss_denominator([groups], loss_type)).loss
    return gradient(setting, -loss)


def group_margins(setting: Setting, groups: Groups, *, mean_of_tokens: bool = True) -> Tensor:
    """Mean score of the hits minus that of the others, of each group, with a gradient: [B]."""
    scores = _scores(setting, mean_of_tokens)  # [B, I]
    items = _items(setting, groups.token_ids)  # [B, G]
    found = scores.gather(1, items)
    is_hit = groups.rewards > 0
    hits, others = is_hit.sum(1), (~is_hit).sum(1)
    return (found * is_hit).sum(1) / hits - (found * ~is_hit).sum(1) / others


def _scores(setting: Setting, mean_of_tokens: bool = True) -> Tensor:
    """s of every item [B, I]: the mean over its tokens, or log p."""
    log_probs = setting.item_log_probs().sum(-1)
    return log_probs / (setting.token_ids >= 0).sum(-1) if mean_of_tokens else log_probs


def _items(setting: Setting, token_ids: Tensor) -> Tensor:
    """The item of each completion [B, G, L]: int64 [B, G]."""
    same = (token_ids[:, :, None] == setting.token_ids[:, None]).all(-1)  # [B, G, I]
    return same.int().argmax(-1)


def _random_groups(setting: Setting, size: int, generator: torch.Generator) -> Groups:
    """A group a prompt, as the trainer makes it: uniform over the catalogue, the target always among them."""
    config = GRPOConfig(group_size=size, negatives="random", ensure_positive=True)
    groups = roll_out(
        setting.model, setting.catalog, setting.input_ids, setting.attention_mask, setting.targets, config, generator
    )
    return replace(groups, rewards=groups.rewards.double())  # advantages are made in the rewards' dtype


def _with_hits(groups: Groups, hits: Tensor) -> Groups:
    """The same completions with the last `hits` [B] of each group rewarded: what several targets a user would give."""
    places = torch.arange(groups.rewards.shape[1])
    return replace(groups, rewards=(places >= len(places) - hits[:, None]).double())


def _exact(setting: Setting, options: Options, generator: torch.Generator) -> dict[str, float]:
    """Relative errors of the gradient of a batch of groups against that of its margins, each times its constant c."""
    prompts, size = len(setting.targets), options.group_size
    groups = _random_groups(setting, size, generator)
    several = torch.arange(prompts) % (size - 1) + 1
    values: dict[str, float] = {}
    for name, batch in (("one hit", groups), ("several hits", _with_hits(groups, several))):
        hits = (batch.rewards > 0).sum(1)
        for normalize_std in (False, True):
            for loss_type in LOSS_TYPES:
                margins = group_margins(setting, batch, mean_of_tokens=loss_type == "grpo")
                length = batch.token_ids.shape[2] if loss_type == "dr_grpo" else 1
                constants = margin_constant(hits, size, normalize_std) / (prompts * size * length)
                expected = gradient(setting, (constants * margins).sum())
                found = loss_gradient(setting, batch, loss_type=loss_type, normalize_std=normalize_std)
                name_of = f"relative error, {name}, {'std' if normalize_std else 'no std'}"
                values[name_of] = max(relative_error(found, expected), values.get(name_of, 0.0))
    return values


def _log_p(setting: Setting, options: Options, generator: torch.Generator) -> float:
    """Cosine of "grpo", whose s is a mean over tokens, with the margin of log p, which beam search ranks by."""
    groups = _random_groups(setting, options.group_size, generator)
    margins = group_margins(setting, groups, mean_of_tokens=False)
    found = loss_gradient(setting, groups, loss_type="grpo", normalize_std=False)
    return cosine(found, gradient(setting, margins.mean()))


def _mixed_hits(setting: Setting, options: Options, generator: torch.Generator) -> dict[str, float]:
    """Cosines with the plain mean of the margins of a batch whose groups have 1, 2, ... hits."""
    groups = _random_groups(setting, options.group_size, generator)
    groups = _with_hits(groups, torch.arange(len(setting.targets)) % (options.group_size - 1) + 1)
    expected = gradient(setting, group_margins(setting, groups).mean())
    return {
        f"cosine, mixed hits, {name}": cosine(
            loss_gradient(setting, groups, loss_type="grpo", normalize_std=normalize_std), expected
        )
        for name, normalize_std in (("no std", False), ("std", True))
    }


def _limits(setting: Setting, options: Options, generator: torch.Generator) -> Result:
    """What the mean gradient of many groups tends to. It is linear in the items' scores: only coefficients are kept."""
    scores = _scores(setting)
    batch, items = scores.shape
    is_target = torch.nn.functional.one_hot(setting.targets, items).double()  # [B, I]
    uniform = (1.0 - is_target) / (items - 1)
    policy = setting.item_scores("trie").exp()  # [B, I], sums to 1
    weighted = policy * (1.0 - is_target)
    weighted = weighted / weighted.sum(1, keepdim=True)

    def margin_gradient(negatives: Tensor) -> Tensor:
        return gradient(setting, ((is_target - negatives) * scores).sum() / batch)

    auc_margin, policy_margin = margin_gradient(uniform), margin_gradient(weighted)
    differences = (is_target * scores).sum(1, keepdim=True) - scores
    values = {"cosine, AUC margin and policy margin": cosine(auc_margin, policy_margin)}
    for sharpness in options.sharpness:
        smooth = gradient(setting, (uniform * (sharpness * differences).sigmoid()).sum() / batch)
        values[f"cosine, margin and smooth AUC, sharpness {sharpness:g}"] = cosine(auc_margin, smooth)

    series: dict[str, list[float]] = {
        name: [] for name in ("groups", "relative error", "cosine", "sampled, AUC margin", "sampled, policy margin")
    }
    size = options.group_size
    drawn, totals = 0, {"random": torch.zeros_like(policy), "sampled": torch.zeros_like(policy)}
    sampled_constant = torch.zeros(batch, dtype=torch.float64)
    while drawn < options.groups:
        more = min(max(drawn, 1), options.groups - drawn)
        totals["random"] += _random_coefficients(setting, more, size, generator)
        sampled = torch.multinomial(policy, more * size, replacement=True, generator=generator).view(batch, more, size)
        coefficients, constants = _coefficients(sampled, setting.targets, items)
        totals["sampled"] += coefficients
        sampled_constant += constants
        drawn += more
        constant = (size - 1) / size
        found = gradient(setting, (totals["random"] / (drawn * constant) * scores).sum() / batch)
        series["groups"].append(float(drawn))
        series["relative error"].append(relative_error(found, auc_margin))
        series["cosine"].append(cosine(found, auc_margin))
        # A prompt counts by how often it is hit; divided by that, it weighs as much as any other that was hit at all.
        known = totals["sampled"] / sampled_constant.clamp_min(1e-300)[:, None]
        found = gradient(setting, (known * scores).sum() / batch)
        is_zero = not bool((sampled_constant > 0).any())
        series["sampled, AUC margin"].append(0.0 if is_zero else cosine(found, auc_margin))
        series["sampled, policy margin"].append(0.0 if is_zero else cosine(found, policy_margin))
    counts, errors = torch.tensor(series["groups"]).log(), torch.tensor(series["relative error"]).log()
    centred = counts - counts.mean()
    slope = float((centred * errors).sum() / (centred**2).sum()) if len(counts) > 1 else 0.0
    values["slope of log error by log groups"] = slope
    values["relative error, all groups"] = series["relative error"][-1]
    for name in ("sampled, AUC margin", "sampled, policy margin"):
        values[f"cosine, {name}"] = series[name][-1]
    return values, series


def _random_coefficients(setting: Setting, groups: int, size: int, generator: torch.Generator) -> Tensor:
    """Sum over `groups` random groups a prompt of each item's advantage: [B, I]."""
    catalog, batch = setting.catalog, len(setting.targets)
    uniforms = draw_uniforms((batch * groups, size), setting.targets.device, generator)
    nodes = random_sequences(catalog.trie, catalog.token_ids, batch * groups, size, uniforms=uniforms).nodes
    item_of_leaf = torch.empty(catalog.trie.num_nodes, dtype=torch.int64)
    item_of_leaf[catalog.item_nodes] = torch.arange(catalog.num_items)
    items = item_of_leaf[nodes].view(batch, groups, size)
    missing = ~(items == setting.targets[:, None, None]).any(-1)
    items[..., -1] = torch.where(missing, setting.targets[:, None], items[..., -1])  # as grpo.ensure_positive does
    return _coefficients(items, setting.targets, catalog.num_items)[0]


def _coefficients(items: Tensor, targets: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """Sum over groups [B, N, G] of each item's advantage [B, I], and of the constants c [B]; without std."""
    batch, _, size = items.shape
    rewards = (items == targets[:, None, None]).double()
    advantages = group_advantages(rewards.flatten(0, 1), normalize_std=False).view_as(rewards)
    totals = torch.zeros(batch, num_items, dtype=torch.float64)
    totals.scatter_add_(1, items.flatten(1), advantages.flatten(1))
    return totals, margin_constant(rewards.sum(-1), size, False).sum(1)
