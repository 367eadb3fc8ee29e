"""What fuzzing draws for the ops: small shapes, odd values, planted -inf and NaN; and what the answers have to be.

The right answers are computed in numpy fp64 from the formulas of METHOD, without any code of the ops; gradients are
compared with the reference op's in fp64, whose losses are compared with the formulas here. Every tolerance is that of
fp32 sums of some dozens of terms of the sizes drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tawin_kernels import (
    ItemTrie,
    TAWin,
    beam_step,
    group_advantages,
    grpo_loss,
    linear_log_probs,
    reference,
    tawin_grpo_loss,
    tawin_weights,
)
from torch import Tensor

from .fuzz_trie import draw_items, prefix_pair

Case = Callable[[np.random.Generator], str]
Array = np.ndarray[Any, Any]

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo")
_MAX_LOG_RATIO = 80.0


@dataclass(frozen=True)
class Where:
    """Where the ops run and as what."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    impl: str = "auto"

    def tensor(self, array: Array, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype).to(self.device)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of every op; values are looked at on a GPU too, so that refusals are the same."""
        return {"impl": self.impl, "check_values": True}


def close(ours: Tensor, right: Array, tolerance: float, what: str) -> None:
    """Equal within tolerance, relative above 1; equal infinities, and NaN nowhere."""
    found = ours.detach().double().cpu().numpy()
    assert found.shape == right.shape, f"{what}: shape {found.shape}, expected {right.shape}"
    assert not np.isnan(found).any(), f"{what}: NaN in {found}"
    infinite = np.isinf(right)
    assert (found[infinite] == right[infinite]).all(), f"{what}: {found}, expected {right}"
    error = np.abs(found - right)[~infinite] / np.maximum(1.0, np.abs(right[~infinite]))
    assert (error <= tolerance).all(), f"{what}: off by {error.max()}: {found}, expected {right}"


def log_softmax(logits: Array) -> Array:
    """Over the last dimension; NaN and +inf give NaN, as they do in any softmax."""
    with np.errstate(all="ignore"):
        top = logits.max(-1, keepdims=True)
        top = np.where(np.isfinite(top), top, 0.0)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def draw_head(random: np.random.Generator, rows: int) -> tuple[Array, Array, Array | None, float]:
    """hidden [rows, H], weight [V, H], bias [V] or None, temperature: fp32 values."""
    H, V = int(random.choice([1, 2, 5, 16])), int(random.integers(6, 40))
    scale = float(random.choice([0.1, 1.0, 4.0]))
    hidden = (random.standard_normal((rows, H)) * scale).astype(np.float32)
    weight = random.standard_normal((V, H)).astype(np.float32)
    bias = random.standard_normal(V).astype(np.float32) if random.random() < 0.5 else None
    return hidden, weight, bias, float(random.choice([1.0, 0.5, 2.0]))


def logits_of(hidden: Array, weight: Array, bias: Array | None, temperature: float) -> Array:
    with np.errstate(all="ignore"):
        logits = hidden.astype(np.float64) @ weight.astype(np.float64).T
        return (logits + (0.0 if bias is None else bias.astype(np.float64))) / temperature


def beam_step_case(where: Where) -> Case:
    """Beams alive, dead and at leaves, -inf and NaN in hidden states, weights, biases; and values to be refused."""

    def case(random: np.random.Generator) -> str:
        B, W, width = (int(random.integers(low, high)) for low, high in ((1, 4), (1, 6), (1, 9)))
        hidden, weight, bias, temperature = draw_head(random, B * W)
        V = len(weight)
        items = [[token % (V - 1) for token in item] for item in draw_items(random)]
        if prefix_pair(items):
            items = [[*item, V - 1] for item in items]
        trie = ItemTrie.from_sequences(items).to(where.device)
        nodes = random.integers(-1, trie.num_nodes, (B, W))
        scores = (random.standard_normal((B, W)) * 3).astype(np.float32)
        scores[random.random((B, W)) < 0.2] = -np.inf
        if random.random() < 0.3:
            scores = np.round(scores)  # ties
        normalizer = str(random.choice(["vocab", "trie"]))
        if random.random() < 0.4:
            for _ in range(int(random.integers(1, 4))):
                plant(random, hidden, weight, bias)
        is_bad = random.random() < 0.1
        if is_bad and random.random() < 0.5:
            nodes[0, 0] = trie.num_nodes + random.integers(0, 5) if random.random() < 0.5 else -2
        elif is_bad:
            scores[0, 0] = np.nan
        try:
            step = beam_step(
                where.tensor(hidden.reshape(B, W, -1)),
                where.tensor(weight),
                trie,
                where.tensor(nodes, torch.int64),
                where.tensor(scores),
                width,
                normalizer=normalizer,
                temperature=temperature,
                bias=None if bias is None else where.tensor(bias),
                **where.options,
            )
        except ValueError as error:
            assert is_bad and str(error).startswith(("nodes: expected", "scores: expected")), error
            return "refused"
        assert not is_bad, "took a node or score that does not exist"
        logits = logits_of(hidden, weight, bias, temperature).reshape(B, W, V)
        require_best_children(step, trie.to("cpu"), nodes, scores.astype(np.float64), logits, width, normalizer)
        return "passed"

    return case


def plant(random: np.random.Generator, hidden: Array, weight: Array, bias: Array | None) -> None:
    """Put one NaN or infinity somewhere."""
    value = float(random.choice([np.nan, -np.inf, np.inf]))
    where = random.integers(0, 3)
    if where == 0 or (where == 2 and bias is None):
        hidden[random.integers(0, len(hidden)), random.integers(0, hidden.shape[1])] = value
    elif where == 1:
        weight[random.integers(0, len(weight)), random.integers(0, weight.shape[1])] = value
    else:
        assert bias is not None
        bias[random.integers(0, len(bias))] = value


def require_best_children(
    step: Any, trie: ItemTrie, nodes: Array, scores: Array, logits: Array, width: int, normalizer: str
) -> None:
    """The step's candidates are children of its beams, none twice, best first, and none left out is better."""
    offsets, edge_tokens = trie.child_offsets.numpy(), trie.edge_tokens.numpy()
    found = [part.cpu().numpy() for part in step]
    for b in range(len(nodes)):
        right: dict[tuple[int, int], float] = {}
        for w, node in enumerate(nodes[b]):
            if node < 0 or scores[b, w] == -np.inf:
                continue
            edges = np.arange(offsets[node], offsets[node + 1])
            if len(edges) == 0:
                continue
            own = logits[b, w, edge_tokens[edges]]
            log_probs = log_softmax(own) if normalizer == "trie" else log_softmax(logits[b, w])[edge_tokens[edges]]
            right |= {(w, int(edge)): scores[b, w] + p for edge, p in zip(edges, log_probs, strict=True)}
        right = {key: value for key, value in right.items() if value > -np.inf}  # NaN is not
        require_row(*(part[b] for part in found), right, edge_tokens, width)


def require_row(
    scores: Array,
    tokens: Array,
    nodes: Array,
    parents: Array,
    right: dict[tuple[int, int], float],
    edge_tokens: Array,
    width: int,
) -> None:
    """Of one prompt; right: (parent, edge) -> score of each candidate that is one."""
    count = min(width, len(right))
    assert len(scores) == width and not np.isnan(scores).any()
    assert (scores[:-1] >= scores[1:]).all(), f"scores out of order: {scores}"
    assert (scores[:count] > -np.inf).all(), f"{count} of {len(right)} candidates expected, got {scores}"
    missing = (scores[count:], tokens[count:], nodes[count:], parents[count:])
    for part, value in zip(missing, (-np.inf, -1, -1, 0), strict=True):
        assert (part == value).all(), f"missing candidates: {part}, expected {value}"
    chosen = [(int(parent), int(node) - 1) for parent, node in zip(parents[:count], nodes[:count], strict=True)]
    assert len(set(chosen)) == count, f"a candidate twice: {chosen}"
    for key, token, score in zip(chosen, tokens[:count], scores[:count], strict=True):
        assert key in right, f"no candidate: parent and edge {key}"
        assert edge_tokens[key[1]] == token
        assert abs(score - right[key]) <= 2e-5 * max(1.0, abs(right[key])), f"score {score}, expected {right[key]}"
    left_out = [value for key, value in right.items() if key not in set(chosen)]
    if left_out and count:
        worst = float(scores[count - 1])
        assert max(left_out) <= worst + 4e-5 * max(1.0, abs(worst)), f"left out {max(left_out)}, kept {worst}"
    for first, second in zip(range(count - 1), range(1, count), strict=True):
        if scores[first] == scores[second]:
            assert chosen[first] < chosen[second], f"a tie out of order: {chosen}"


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


def log_probs_case(where: Where) -> Case:
    """linear_log_probs over the vocabulary and over a trie's children, with rows shared, and its gradients."""

    def case(random: np.random.Generator) -> str:
        count, R = int(random.integers(1, 13)), int(random.integers(1, 9))
        hidden, weight, bias, temperature = draw_head(random, R)
        V = len(weight)
        rows = random.integers(0, R, count)
        items = [[token % V for token in item] for item in draw_items(random)]
        trie = nodes = None
        tokens = random.integers(0, V, count)
        if random.random() < 0.4 and not prefix_pair(items):
            trie = ItemTrie.from_sequences(items).to(where.device)
            edges = random.integers(0, trie.num_nodes - 1, count)
            offsets = trie.child_offsets.cpu().numpy()
            nodes = np.searchsorted(offsets, edges, side="right") - 1
            tokens = trie.edge_tokens.cpu().numpy()[edges].astype(np.int64)
        ignored = random.random(count) < 0.2
        given = np.where(ignored, -100, tokens)
        is_bad = random.random() < 0.1
        if is_bad:
            given[0] = int(random.choice([-1, -101, V, 2**40]))
        options: dict[str, Any] = {"temperature": temperature}
        if trie is not None and nodes is not None:
            options |= {"normalizer": "trie", "trie": trie, "nodes": where.tensor(nodes, torch.int64)}

        def result(dtype: torch.dtype, impl: dict[str, Any], op: Any) -> tuple[Tensor, list[Tensor]]:
            parts = [part for part in (hidden, weight, bias) if part is not None]
            leaves = [where.tensor(part, dtype).requires_grad_() for part in parts]
            found = op(
                leaves[0],
                leaves[1],
                where.tensor(given, torch.int64),
                bias=leaves[2] if bias is not None else None,
                rows=where.tensor(rows, torch.int64),
                **options,
                **impl,
            )
            found.sum().backward()
            return found, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

        try:
            found, gradients = result(torch.float32, where.options, linear_log_probs)
        except ValueError as error:
            assert is_bad and str(error).startswith("token_ids: expected"), error
            return "refused"
        assert not is_bad, f"took token {given[0]} of {V}"
        logits = logits_of(hidden[rows], weight, bias, temperature)  # [count, V]
        if trie is not None and nodes is not None:
            is_child = np.zeros_like(logits, dtype=bool)
            edge_tokens = trie.edge_tokens.cpu().numpy()
            for row, node in enumerate(nodes):
                is_child[row, edge_tokens[offsets[node] : offsets[node + 1]]] = True
            logits = np.where(is_child, logits, -np.inf)
        right = log_softmax(logits)
        close(found, np.where(ignored, 0.0, right[np.arange(count), tokens]), 2e-5, "log-probs")
        # d log p(t) / d z_v = [v = t] - p_v, z = (h w + b) / temperature.
        d = (np.eye(V)[tokens] - np.exp(right)) * ~ignored[:, None] / temperature  # [count, V]
        to_hidden = np.zeros(hidden.shape)
        np.add.at(to_hidden, rows, d @ weight.astype(np.float64))
        exact = [to_hidden, d.T @ hidden[rows].astype(np.float64), d.sum(0)]
        for gradient, what, one in zip(gradients, ("hidden", "weight", "bias"), exact, strict=False):
            close(gradient, one, 1e-4, f"the gradient of {what}")
        return "passed"

    return case


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
