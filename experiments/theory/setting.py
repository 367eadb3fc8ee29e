"""A policy and a catalogue so small that the score of every item is known: what the checks of gradients and beams use.

Everything is tawin's own: the synthetic catalogue, its semantic ids, a small Qwen2, next-item training on the users'
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tawin_kernels import linear_log_probs
from tawin_kernels.types import Normalizer
from torch import Tensor, nn

from tawin.catalog.catalog import Catalog, build_catalog, make_tokenizer
from tawin.catalog.semantic_ids import build_semantic_ids, separate_shared_ids
from tawin.config import CatalogConfig, PolicyConfig, SyntheticConfig
from tawin.data.dataset import Examples, split_leave_one_out, training_windows
from tawin.data.synthetic import make_synthetic
from tawin.model.backbone import backbone
from tawin.model.policy import build_model
from tawin.model.token_tree import completion_states
from tawin.search.completions import prefix_nodes


@dataclass(frozen=True, eq=False)
class Setting:
    """A policy, its catalogue and prompts with the item that came next."""

    model: nn.Module
    catalog: Catalog
    input_ids: Tensor  # int64 [B, P], left-padded
    attention_mask: Tensor  # int64 [B, P]
    targets: Tensor  # int64 [B]

    @property
    def token_ids(self) -> Tensor:
        """Every item as a completion of every prompt: int64 [B, I, L], -100 = padding."""
        tokens = self.catalog.token_ids.masked_fill(self.catalog.token_ids < 0, -100)
        return tokens.expand(len(self.input_ids), -1, -1)

    def item_log_probs(self, normalizer: Normalizer = "vocab") -> Tensor:
        """Log p of every token of every item after every prompt, with a gradient: [B, I, L], 0 at padding."""
        parts = backbone(self.model)
        tokens = self.token_ids
        states, rows = completion_states(parts, self.input_ids, self.attention_mask, tokens)
        weight, bias = parts.head_in(states.dtype)
        over_trie = normalizer == "trie"
        return linear_log_probs(
            states,
            weight,
            tokens,
            bias=bias,
            rows=rows,
            normalizer=normalizer,
            trie=self.catalog.trie if over_trie else None,
            nodes=prefix_nodes(self.catalog.trie, tokens) if over_trie else None,
        )

    @torch.no_grad()
    def item_scores(self, normalizer: Normalizer, batch: int = 25) -> Tensor:
        """Log p of every item after every prompt, without gradient: [B, I]."""
        parts = [self.take(slice(start, start + batch)) for start in range(0, len(self.targets), batch)]
        return torch.cat([part.item_log_probs(normalizer).sum(-1) for part in parts])

    def take(self, rows: slice) -> Setting:
        """The same policy on some of the prompts."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            targets=self.targets[rows],
        )


def make_setting(
    *,
    users: int,
    items: int,
    codes: int,
    hidden_size: int,
    steps: int,
    prompts: int,
    seed: int,
    mixed_lengths: bool = False,
) -> Setting:
    """A small policy after `steps` optimizer steps of next-item training (0: random weights), and valid prompts.

    Args:
        users, items: size of the synthetic data.
        codes: codes a level of the semantic ids, which have three levels.
        hidden_size: of the two-layer Qwen2, a multiple of 8.
        prompts: how many of the users' validation examples are kept.
        seed: of data, ids, weights and training.
        mixed_lengths: leave the last code out, so that many ids collide and only those get a further token.

    The weights are fp64 once they are trained; training is fp32.
    """
    dataset = make_synthetic(SyntheticConfig(num_users=users, num_items=items, num_clusters=min(items, 20)), seed)
    split = split_leave_one_out(dataset, seed=seed)
    config = CatalogConfig(codes=codes)
    ids = build_semantic_ids(dataset, config, training_sequences=split.sft, seed=seed)
    if mixed_lengths:
        ids = separate_shared_ids([code[:2] for code in ids])
    tokenizer = make_tokenizer(dataset, config, ids)
    catalog = build_catalog(dataset, tokenizer, config, training_sequences=split.sft, seed=seed, semantic_ids=ids)
    policy = PolicyConfig(hidden_size=hidden_size, layers=2, heads=4, intermediate_size=2 * hidden_size)
    model = build_model(policy, tokenizer, seed)
    _train(model, catalog, split.sft, steps, seed)
    examples = split.valid.sample(prompts, seed)
    input_ids, attention_mask = catalog.encode_histories(list(examples.histories))
    return Setting(model.double().eval(), catalog, input_ids, attention_mask, _targets(examples))


def _targets(examples: Examples) -> Tensor:
    return torch.from_numpy(np.asarray(examples.targets, dtype=np.int64))


def _train(model: nn.Module, catalog: Catalog, sequences: Sequence[np.ndarray], steps: int, seed: int) -> None:
    """Next-item cross-entropy on batches of 64 users drawn at random, AdamW at a constant rate."""
    windows, first_targets = training_windows(sequences, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = np.random.default_rng(seed)
    model.train()
    for _ in range(steps):
        rows = random.choice(len(windows), size=min(64, len(windows)), replace=False)
        batch = [windows[row] for row in rows]
        input_ids, attention_mask, labels = catalog.encode_windows(batch, [first_targets[row] for row in rows])
        loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
