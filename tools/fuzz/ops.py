"""What fuzzing draws for beam_step and the log-probs: small shapes, odd values, planted -inf and NaN.

The right answers and gradients are computed in numpy fp64 from the formulas, without any code of the ops. Every
tolerance is that of fp32 sums of some dozens of terms of the sizes drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tawin_kernels import (
    ItemTrie,
    beam_step,
    linear_log_probs,
)
from torch import Tensor

from .trie import draw_items, prefix_pair

Case = Callable[[np.random.Generator], str]
Array = np.ndarray[Any, Any]


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


def close(ours: Tensor, right: Array, tolerance: float, what: str, terms: Array | None = None) -> None:
    """Equal within tolerance, relative above 1; equal infinities, and NaN nowhere.

    terms: of the shape of `right`, the sizes of what is added up there, if the errors of these are what counts.
    """
    found = ours.detach().double().cpu().numpy()
    assert found.shape == right.shape, f"{what}: shape {found.shape}, expected {right.shape}"
    assert not np.isnan(found).any(), f"{what}: NaN in {found}"
    infinite = np.isinf(right)
    assert (found[infinite] == right[infinite]).all(), f"{what}: {found}, expected {right}"
    size = np.maximum(1.0, np.abs(right if terms is None else terms)[~infinite])
    error = np.abs(found - right)[~infinite] / size
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
        is_token, p = np.eye(V)[tokens], np.exp(right)
        states, weights = hidden[rows].astype(np.float64), weight.astype(np.float64)

        def gradients_of(d: Array, h: Array, w: Array) -> list[Array]:
            d = d * ~ignored[:, None] / temperature  # [count, V]
            to_hidden = np.zeros(hidden.shape)
            np.add.at(to_hidden, rows, d @ w)
            return [to_hidden, d.T @ h, d.sum(0)]

        exact = gradients_of(is_token - p, states, weights)
        terms = gradients_of(is_token + p, np.abs(states), np.abs(weights))  # p has the error of logits as large as 200
        for gradient, what, one, size in zip(gradients, ("hidden", "weight", "bias"), exact, terms, strict=False):
            close(gradient, one, 1e-4, f"the gradient of {what}", size)
        return "passed"

    return case
