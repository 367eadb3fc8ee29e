"""What fuzzing draws for advantages and losses: binary, graded and equal rewards, ties, ratios that overflow, and NaN
wherever nothing is to be read.

The right answers are computed in numpy fp64 from the formulas of METHOD, without any code of the ops. Gradients are
compared with those of the reference op in fp64, whose losses are compared with the formulas here.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import torch
from tawin_kernels import TAWin, group_advantages, grpo_loss, reference, tawin_grpo_loss, tawin_weights
from tawin_kernels.ops.loss.types import LossType
from torch import Tensor

from .ops import Array, Case, Where, close, draw_head, log_softmax, logits_of

LOSS_TYPES = get_args(LossType)
_MAX_LOG_RATIO = 80.0


def draw_rewards(random: np.random.Generator, B: int, G: int) -> tuple[Array, Array, Array]:
    """rewards, scores fp32 [B, G] and valid bool [B, G]: binary, graded or equal rewards; scores with ties and -inf."""
    kind = random.integers(0, 3)
    if kind == 0:
        rewards = (random.random((B, G)) < 0.3).astype(np.float32)
    elif kind == 1:
        rewards = (random.standard_normal((B, G)) * float(random.choice([1e-3, 1.0, 1e3]))).astype(np.float32)
    else:
        rewards = np.full((B, G), random.standard_normal(), dtype=np.float32)
    scores = (random.standard_normal((B, G)) * 5).astype(np.float32)
    if random.random() < 0.4:
        scores = np.round(scores)
    scores[random.random((B, G)) < 0.1] = -np.inf
    valid = random.random((B, G)) < float(random.choice([1.0, 0.8, 0.3]))
    return rewards, scores, valid


def draw_tawin(random: np.random.Generator) -> TAWin:
    return TAWin(
        anchor=float(random.choice([0.0, 0.5, 2.0, 9.0, 40.0])),
        window=float(random.choice([0.01, 0.5, 1.0, 2.5, 7.0, 100.0])),
        temperature=float(random.choice([0.05, 0.5, 1.0, 10.0])),
        rank_transform=str(random.choice(["identity", "log2", "fraction"])),  # type: ignore[arg-type]
    )


def right_weights(scores: Array, negatives: Array, tawin: TAWin) -> Array:
    """TAWin weights of one group, with lambda by bisection of the mass in fp64."""
    weights = np.ones(len(scores))
    rows = np.flatnonzero(negatives)
    if len(rows) <= tawin.window:
        return weights
    rows = rows[np.argsort(-scores[rows].astype(np.float64), kind="stable")]
    ranks, anchor = np.arange(len(rows), dtype=np.float64), tawin.anchor
    if tawin.rank_transform == "log2":
        ranks, anchor = np.log2(1 + ranks), math.log2(1 + anchor)
    elif tawin.rank_transform == "fraction":
        ranks, anchor = ranks / len(rows), anchor / len(rows)
    x = -np.abs(ranks - anchor) / tawin.temperature

    def mass(threshold: float) -> Array:
        return np.exp(np.minimum(0.0, x - threshold))

    low, high = x.min() - 1.0, x.max() + 1.0 + abs(math.log(tawin.window)) + math.log(len(rows))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle).sum() > tawin.window else (low, middle)
    raw = mass(high)
    weights[rows] = raw * len(rows) / raw.sum()
    return weights


def right_advantages(
    rewards: Array, scores: Array, valid: Array, tawin: TAWin | None, normalize_std: bool, eps: float
) -> Array:
    """Of one group."""
    found = np.zeros(len(rewards))
    own = rewards[valid].astype(np.float64)
    if len(own) == 0 or own.max() == own.min():
        return found
    centered = own - own.mean()
    found[valid] = centered / (math.sqrt((centered**2).sum() / (len(own) - 1)) + eps) if normalize_std else centered
    if tawin is not None:
        negatives = valid & (rewards <= 0)
        found *= right_weights(np.where(valid, scores, -np.inf), negatives, tawin)
    return found


def advantages_case(where: Where) -> Case:
    """group_advantages and tawin_weights; values of completions that are not there are NaN."""

    def case(random: np.random.Generator) -> str:
        B, G = int(random.integers(1, 4)), int(random.choice([1, 2, 3, 8, 16, 33]))
        rewards, scores, valid = draw_rewards(random, B, G)
        tawin = draw_tawin(random) if random.random() < 0.8 else None
        normalize_std, eps = bool(random.random() < 0.7), float(random.choice([0.0, 1e-4, 1.0]))
        read_rewards, read_scores = np.where(valid, rewards, np.nan), np.where(valid, scores, np.nan)
        is_bad = bool(random.random() < 0.1 and valid.any())
        if is_bad:
            b, g = (int(index[0]) for index in valid.nonzero())
            broken = read_rewards if random.random() < 0.5 else read_scores
            broken[b, g] = float(random.choice([np.nan, np.inf])) if broken is read_rewards else np.nan
        try:
            found = group_advantages(
                where.tensor(read_rewards),
                where.tensor(read_scores),
                tawin=tawin,
                normalize_std=normalize_std,
                eps=eps,
                valid=where.tensor(valid, torch.bool),
                **where.options,
            )
        except ValueError as error:
            assert is_bad and str(error).startswith(("rewards: expected", "scores: expected")), error
            return "refused"
        assert not is_bad, "took a reward or score that is not finite"
        rows = range(B)
        right = [right_advantages(rewards[b], scores[b], valid[b], tawin, normalize_std, eps) for b in rows]
        close(found, np.stack(right), 3e-4, "advantages")
        for b in rows:
            own = rewards[b][valid[b]]
            if len(own) == 0 or own.max() == own.min():
                assert not bool(found[b].any()), f"a dead group has advantages {found[b]}"
        if tawin is not None:
            negatives = valid & (rewards <= 0)
            weights = tawin_weights(where.tensor(scores), where.tensor(negatives, torch.bool), tawin, **where.options)
            close(weights, np.stack([right_weights(scores[b], negatives[b], tawin) for b in rows]), 1e-4, "weights")
        return "passed"

    return case


def right_loss(
    log_probs: Array,
    mask: Array,
    advantages: Array,
    valid: Array,
    old: Array | None,
    ref: Array | None,
    options: dict[str, Any],
) -> tuple[float, float]:
    """The loss and the KL in fp64, from the formulas. All [B, G, L] or [B, G]."""
    kind, low, high, beta = (options[name] for name in ("loss_type", "epsilon_low", "epsilon_high", "beta"))
    mask = mask & valid[..., None]
    lengths, tokens = mask.sum(-1), max(1, int(mask.sum()))
    log_probs = np.where(mask, log_probs, 0.0)
    ratio = np.zeros_like(log_probs) if old is None else log_probs - np.where(mask, old, 0.0)
    if kind == "gspo" or options["importance_level"] == "sequence":
        ratio = np.broadcast_to((ratio.sum(-1) / np.maximum(lengths, 1))[..., None], log_probs.shape)
    rho = np.exp(np.minimum(ratio, _MAX_LOG_RATIO))
    a = np.where(valid, advantages, 0.0)[..., None]
    if kind == "cispo":
        losses = -np.minimum(rho, high) * a * log_probs
    else:
        losses = -np.minimum(rho * a, np.clip(rho, 1 - low, 1 + high) * a)
    kl = 0.0
    if ref is not None:
        distance = np.minimum(np.where(mask, ref, 0.0) - log_probs, _MAX_LOG_RATIO)
        token_kl = np.exp(distance) - distance - 1
        kl = float(token_kl[mask].sum()) / tokens
        losses = losses + beta * token_kl
    losses = np.where(mask, losses, 0.0)
    if kind in ("grpo", "gspo"):
        total, count = (losses.sum(-1) / np.maximum(lengths, 1)).sum(), int(valid.sum())
    elif kind == "dr_grpo":
        total, count = losses.sum(), int(valid.sum()) * mask.shape[-1]
    else:
        total, count = losses.sum(), tokens
    return float(total) / (options["denominator"] or max(count, 1)), kl


def draw_loss_options(random: np.random.Generator, has_reference: bool) -> dict[str, Any]:
    kind = str(random.choice(LOSS_TYPES))
    return {
        "loss_type": kind,
        "importance_level": str(random.choice(["token", "sequence"])),
        "epsilon_low": float(random.choice([0.0, 0.2, 0.9])),
        "epsilon_high": float(random.choice([1.0, 5.0])) if kind == "cispo" else float(random.choice([0.0, 0.2, 3.0])),
        "beta": float(random.choice([0.0, 0.04, 1.0])) if has_reference else 0.0,
        "denominator": float(random.choice([1.0, 7.0])) if random.random() < 0.3 else None,
    }


def losses_case(where: Where) -> Case:
    """grpo_loss of all kinds, its KL and its gradient; masked values are NaN."""

    def case(random: np.random.Generator) -> str:
        B, G, L = (int(random.integers(1, high)) for high in (4, 7, 6))
        mask = random.random((B, G, L)) < float(random.choice([1.0, 0.7, 0.2]))
        valid = random.random((B, G)) < 0.9
        spread = float(random.choice([0.1, 1.0, 30.0, 200.0]))  # the last overflows any exponential

        def drawn() -> Array:
            return (random.standard_normal((B, G, L)) * spread - 3.0).astype(np.float32)

        log_probs, advantages = drawn(), random.standard_normal((B, G)).astype(np.float32)
        old, ref = (drawn() if random.random() < 0.6 else None for _ in range(2))
        options = draw_loss_options(random, ref is not None)
        is_read = mask & valid[..., None]

        def result(dtype: torch.dtype, impl: dict[str, Any], op: Any) -> tuple[Any, Tensor]:
            leaf = where.tensor(np.where(is_read, log_probs, np.nan), dtype).requires_grad_()
            given = {
                name: where.tensor(np.where(is_read, part, np.nan), dtype)
                for name, part in (("old_log_probs", old), ("ref_log_probs", ref))
                if part is not None
            }
            found = op(
                leaf,
                where.tensor(mask, torch.bool),
                where.tensor(np.where(valid, advantages, np.nan), dtype),
                valid=where.tensor(valid, torch.bool),
                **given,
                **options,
                **impl,
            )
            found.loss.backward()
            assert leaf.grad is not None
            return found, leaf.grad

        ours, gradient = result(torch.float32, where.options, grpo_loss)
        exact, exact_gradient = result(torch.float64, {}, reference.grpo_loss)
        wide = (part if part is None else part.astype(np.float64) for part in (log_probs, old, ref))
        own, wide_old, wide_ref = wide
        loss, kl = right_loss(own, mask, advantages, valid, wide_old, wide_ref, options)
        close(exact.loss, np.array(loss), 1e-9, "the loss in fp64")
        # A log-ratio of 80 carries an error of fp32 that its exponential multiplies by 80; a sum, that of its terms.
        tolerance = 2e-4 if spread < 30 else 2e-2
        size = max(1.0, float(np.abs(exact_gradient.double().cpu().numpy()).max(initial=0.0)))
        terms = max(1.0, terms_of(own, mask & valid[..., None], advantages, wide_old, wide_ref, options))
        close(ours.loss / terms, np.array(loss / terms), tolerance, "the loss")
        close(ours.kl / max(1.0, kl), np.array(kl / max(1.0, kl)), tolerance, "the KL")
        if not near_a_clip(own, mask & valid[..., None], wide_old, options):
            close(gradient / size, exact_gradient.double().cpu().numpy() / size, tolerance, "the gradient")
        assert not bool(gradient.cpu()[torch.from_numpy(~is_read)].any()), "a masked token has a gradient"
        return "passed"

    return case


def terms_of(
    log_probs: Array, mask: Array, advantages: Array, old: Array | None, ref: Array | None, options: dict[str, Any]
) -> float:
    """The largest term of the loss's sum, by whose rounding fp32 may differ."""
    ratio = np.zeros_like(log_probs) if old is None else np.where(mask, log_probs - old, 0.0)
    largest = np.exp(np.minimum(np.abs(ratio).max(initial=0.0), _MAX_LOG_RATIO)) * np.abs(advantages).max(initial=0.0)
    if options["loss_type"] == "cispo":
        largest = options["epsilon_high"] * np.abs(np.where(mask, log_probs, 0.0)).max(initial=0.0)
    if ref is not None:
        distance = np.where(mask, ref - log_probs, 0.0).max(initial=0.0)
        largest = max(largest, options["beta"] * np.exp(min(distance, _MAX_LOG_RATIO)))
    return float(largest)


def near_a_clip(log_probs: Array, mask: Array, old: Array | None, options: dict[str, Any]) -> bool:
    """Whether a ratio is so near a bound that fp32 may round it to the other side, where the gradient is another."""
    if old is None:
        ratio = np.zeros_like(log_probs)
        if 0.0 not in (options["epsilon_low"], options["epsilon_high"]):
            return False
    else:
        ratio = np.where(mask, log_probs - old, 0.0)
    if options["loss_type"] == "gspo" or options["importance_level"] == "sequence":
        ratio = ratio.sum(-1) / np.maximum(mask.sum(-1), 1)
    bounds = [1 - options["epsilon_low"], 1 + options["epsilon_high"]]
    if options["loss_type"] == "cispo":
        bounds = [options["epsilon_high"]]
    logs = [math.log(bound) for bound in bounds if bound > 0]
    distance = min([float(np.abs(ratio - bound).min(initial=np.inf)) for bound in [*logs, _MAX_LOG_RATIO]])
    return distance < 1e-4 * max(1.0, float(np.abs(ratio).max(initial=0.0)))


def tawin_loss_case(where: Where) -> Case:
    """tawin_grpo_loss from hidden states to the gradient, against its parts and the reference op in fp64."""

    def case(random: np.random.Generator) -> str:
        B, G, L = (int(random.integers(low, high)) for low, high in ((1, 4), (1, 7), (1, 5)))
        hidden, weight, bias, temperature = draw_head(random, B * G * L)
        V = len(weight)
        mask = np.arange(L) < random.integers(0, L + 1, (B, G))[..., None]
        tokens = np.where(mask, random.integers(0, V, (B, G, L)), -100)
        rewards, scores, _ = draw_rewards(random, B, G)
        tawin = draw_tawin(random) if random.random() < 0.8 else None
        valid = mask.any(-1)
        options = draw_loss_options(random, False)
        is_bad = bool(random.random() < 0.1 and valid.any())
        if is_bad:
            b, g = (int(index[0]) for index in valid.nonzero())
            (rewards if random.random() < 0.5 else scores)[b, g] = np.nan
        states = np.where(mask.reshape(-1, 1), hidden, np.nan).reshape(B, G, L, -1)

        def result(dtype: torch.dtype, impl: dict[str, Any], op: Any) -> tuple[Any, list[Tensor]]:
            parts = [part for part in (states, weight, bias) if part is not None]
            leaves = [where.tensor(part, dtype).requires_grad_() for part in parts]
            found = op(
                leaves[0],
                leaves[1],
                where.tensor(tokens, torch.int64),
                where.tensor(mask, torch.bool),
                where.tensor(rewards, dtype),
                where.tensor(scores, dtype),
                tawin=tawin,
                bias=leaves[2] if bias is not None else None,
                temperature=temperature,
                **options,
                **impl,
            )
            found.loss.backward()
            return found, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

        try:
            ours, gradients = result(torch.float32, where.options, tawin_grpo_loss)
        except ValueError as error:
            assert is_bad and str(error).startswith(("rewards: expected", "scores: expected")), error
            return "refused"
        assert not is_bad, "took a reward or score of NaN"
        exact, exact_gradients = result(torch.float64, {}, reference.tawin_grpo_loss)
        right = [right_advantages(rewards[b], scores[b], valid[b], tawin, True, 1e-4) for b in range(B)]
        close(exact.advantages, np.stack(right), 1e-6, "the advantages in fp64")
        log_probs = log_softmax(logits_of(hidden, weight, bias, temperature)).reshape(B, G, L, V)
        picked = np.take_along_axis(log_probs, np.maximum(tokens, 0)[..., None], -1)[..., 0]
        loss, _ = right_loss(picked, mask, np.stack(right), valid, None, None, options)
        close(exact.loss, np.array(loss), 1e-6, "the loss in fp64")
        close(ours.loss, np.array(loss), 5e-4, "the loss")
        for gradient, one, what in zip(gradients, exact_gradients, ("hidden", "weight", "bias"), strict=False):
            close(gradient, one.double().cpu().numpy(), 5e-4, f"the gradient of {what}")
        assert not bool(gradients[0].cpu()[torch.from_numpy(~mask)].any()), "a masked state has a gradient"
        return "passed"

    return case
