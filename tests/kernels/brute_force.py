"""The ops once more, the slow way: Python numbers and loops, written from the formulas and not from the package.

Sequences are Python tuples, a trie is the sorted list of their prefixes, tensors come in and nested lists go out.
"""

from __future__ import annotations

import math

import torch
from tawin_kernels import BeamStep, ItemTrie


def prefixes_breadth_first(sequences: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Node n of the trie is the n-th prefix: by depth, then in the order of the tokens."""
    prefixes = {sequence[:end] for sequence in sequences for end in range(len(sequence) + 1)}
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))


def log_softmax(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float) -> list:
    """log p of every token for one hidden state [H]."""
    logits = []
    for token in range(len(weight)):
        logit = sum(float(h) * float(w) for h, w in zip(hidden, weight[token], strict=True))
        logits.append((logit + (0.0 if bias is None else float(bias[token]))) / temperature)
    largest = max(logits)
    normalization = largest + math.log(sum(math.exp(logit - largest) for logit in logits))
    return [logit - normalization for logit in logits]


def beam_candidates(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    sequences: list[tuple[int, ...]],
    nodes: list[int],
    scores: list[float],
    normalizer: str,
    temperature: float,
    bias: torch.Tensor | None,
) -> dict[tuple[int, int], tuple[float, int]]:
    """All candidates of one prompt: (parent, token) -> (score, node). hidden [W, H]."""
    prefixes = prefixes_breadth_first(sequences)
    candidates = {}
    for parent, (node, score) in enumerate(zip(nodes, scores, strict=True)):
        if node < 0 or score == -math.inf:
            continue
        prefix = prefixes[node]
        children = [p[-1] for p in prefixes if len(p) == len(prefix) + 1 and p[:-1] == prefix]
        if not children:
            continue
        log_probs = log_softmax(hidden[parent], weight, bias, temperature)
        mass = math.fsum(math.exp(log_probs[token]) for token in children) if normalizer == "trie" else 1.0
        for token in children:
            child = prefixes.index((*prefix, token))
            candidates[parent, token] = (score + log_probs[token] - math.log(mass), child)
    return candidates


def window_weights(scores: list[float], negatives: list[bool], anchor, window, temperature, rank_transform) -> list:
    """TAWin weights of one group, with lambda found by bisection."""
    indexes = [i for i, is_negative in enumerate(negatives) if is_negative]
    weights = [1.0] * len(scores)
    if window >= len(indexes):
        return weights
    transform = {
        "identity": lambda rank: rank,
        "log2": lambda rank: math.log2(1 + rank),
        "fraction": lambda rank: rank / len(indexes),
    }[rank_transform]
    by_score = sorted(indexes, key=lambda i: (-scores[i], i))
    x = {i: -abs(transform(rank) - transform(anchor)) for rank, i in enumerate(by_score)}

    def saturated_mass(threshold: float) -> float:
        return math.fsum(math.exp(min(0.0, (value - threshold) / temperature)) for value in x.values())

    span = temperature * (len(indexes) + 800 + abs(math.log(window)))
    low, high = min(x.values()) - span, max(x.values()) + span  # mass(low) = |N| > window, mass(high) < window
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if saturated_mass(middle) > window else (low, middle)
    raw = {i: math.exp(min(0.0, (value - high) / temperature)) for i, value in x.items()}
    for i in indexes:
        weights[i] = raw[i] * len(indexes) / math.fsum(raw.values())
    return weights


def advantages(
    rewards: list[float], valid: list[bool], weights: list[float] | None, normalize_std: bool, eps: float
) -> list:
    """Advantages of one group; weights are those of the negatives, None: plain GRPO."""
    existing = [reward for reward, exists in zip(rewards, valid, strict=True) if exists]
    if len(set(existing)) < 2:
        return [0.0] * len(rewards)
    mean = math.fsum(existing) / len(existing)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in existing) / (len(existing) - 1))
    result = []
    for i, (reward, exists) in enumerate(zip(rewards, valid, strict=True)):
        advantage = (reward - mean) / (std + eps if normalize_std else 1.0) if exists else 0.0
        result.append(advantage * (weights[i] if weights is not None and reward <= 0 else 1.0))
    return result


def group_loss(
    log_probs: list,
    mask: list,
    advantage: list,
    valid: list,
    old: list | None,
    ref: list | None,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    denominator: float | None,
    importance_level: str = "token",
) -> dict[str, float]:
    """The loss, kl and clip_fraction of nested lists [B][G][L]."""
    length = len(mask[0][0])
    total = kl_sum = 0.0
    tokens = clipped = sequences = 0
    for b in range(len(mask)):
        for g in range(len(mask[b])):
            if not valid[b][g]:
                continue
            sequences += 1
            positions = [j for j in range(length) if mask[b][g][j]]
            if not positions:
                continue
            a = advantage[b][g]
            log_ratios = [log_probs[b][g][j] - old[b][g][j] if old is not None else 0.0 for j in positions]
            if loss_type == "gspo" or importance_level == "sequence":
                log_ratios = [math.fsum(log_ratios) / len(positions)] * len(positions)
            completion = 0.0
            for j, log_ratio in zip(positions, log_ratios, strict=True):
                ratio = math.exp(log_ratio)
                if loss_type == "cispo":
                    completion -= min(ratio, epsilon_high) * a * log_probs[b][g][j]
                    clipped += ratio > epsilon_high and a > 0
                else:
                    bounded = min(max(ratio, 1 - epsilon_low), 1 + epsilon_high)
                    completion -= min(ratio * a, bounded * a)
                    clipped += bounded * a < ratio * a
                if ref is not None:
                    difference = ref[b][g][j] - log_probs[b][g][j]
                    kl = math.exp(difference) - difference - 1
                    kl_sum += kl
                    completion += beta * kl
            tokens += len(positions)
            total += completion / len(positions) if loss_type in ("grpo", "gspo") else completion
    counted = {"grpo": sequences, "gspo": sequences, "dr_grpo": sequences * length}.get(loss_type, tokens)
    return {
        "loss": total / (max(counted, 1) if denominator is None else denominator),
        "kl": kl_sum / max(tokens, 1),
        "clip_fraction": clipped / max(tokens, 1),
    }


def is_sound(step: BeamStep, trie: ItemTrie, beam_width: int) -> None:
    """What holds for every result, whatever the scores: shapes, dtypes, order, how missing candidates look."""
    for name, dtype in (("tokens", torch.int64), ("nodes", torch.int64), ("parents", torch.int64)):
        assert getattr(step, name).dtype == dtype
        assert getattr(step, name).shape == step.scores.shape
    assert step.scores.shape[1] == beam_width
    missing = step.scores == -math.inf
    assert bool((step.nodes[missing] == -1).all())
    assert bool((step.tokens[missing] == -1).all())
    assert bool((step.parents[missing] == 0).all())
    assert bool((missing.int().diff() >= 0).all())  # the missing ones come last
    edges = step.nodes[~missing] - 1
    assert torch.equal(trie.edge_tokens[edges].long(), step.tokens[~missing])
    for row in range(len(step.scores)):
        live = [
            (-s, p, t)
            for s, p, t in zip(*(x[row].tolist() for x in (step.scores, step.parents, step.tokens)), strict=True)
            if s > -math.inf
        ]
        assert live == sorted(live)  # best first, then lower parent, then lower token, which is the order of edges
        assert len({key[1:] for key in live}) == len(live)
