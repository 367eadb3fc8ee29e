"""A batch of groups: G completions per prompt, with their rewards and scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from tawin_kernels import ItemTrie
from tawin_kernels.types import Normalizer
from torch import Tensor

from ..config.training import TokenCount
from ..model.tree_attention import Prompt
from ..search.completions import prefix_nodes, scored_tokens


@dataclass(frozen=True)
class Groups:
    """A batch of prompts with their completions."""

    input_ids: Tensor  # int64 [B, P], left-padded
    attention_mask: Tensor  # int64 [B, P]
    token_ids: Tensor  # int64 [B, G, L], -100 = padding or missing
    rewards: Tensor  # fp32 [B, G]
    scores: Tensor  # fp32 [B, G], summed log p of each completion
    hits: Tensor  # bool [B], the rollout itself found a target
    trie: ItemTrie | None = None  # log p of a completion is a softmax over its children; None: over the vocabulary
    prompt: Prompt | None = None  # the rollout's prefill, where the policy's forward goes on from it
    users: Tensor | None = None  # int64 [B], whose prompts they are: for reports

    @property
    def mask(self) -> Tensor:
        """bool [B, G, L], the tokens that exist."""
        return self.token_ids >= 0

    def counted(self, count: TokenCount) -> Tensor:
        """bool [B, G, L], the tokens that count in a mean over tokens: see `GRPOConfig.count`."""
        return self.mask if count == "tokens" else scored_tokens(self.token_ids, self.trie, self.nodes)

    @property
    def normalizer(self) -> Normalizer:
        """What the scores are a softmax over, and so every log-prob that is compared with them."""
        return "vocab" if self.trie is None else "trie"

    @property
    def nodes(self) -> Tensor | None:
        """int64 [B, G, L], the node of the trie before each token; None without a trie."""
        return None if self.trie is None else prefix_nodes(self.trie, self.token_ids)

    @property
    def valid(self) -> Tensor:
        """bool [B, G], the completions that exist."""
        return self.mask.any(-1)

    @property
    def live(self) -> Tensor:
        """bool [B]: groups with unequal rewards, hence with a gradient."""
        highest = self.rewards.masked_fill(~self.valid, -torch.inf).amax(1)
        lowest = self.rewards.masked_fill(~self.valid, torch.inf).amin(1)
        return highest > lowest

    def without_rewards(self) -> Groups:
        """The same with rewards of 0, hence without a gradient."""
        return replace(self, rewards=torch.zeros_like(self.rewards))

    def take(self, index: Tensor) -> Groups:
        """The groups at `index`, prompts cut to the longest one left; without the rollout's prefill."""
        attention_mask = self.attention_mask[index]
        start = int((~attention_mask.bool()).long().cumprod(1).sum(1).min()) if len(index) else 0
        return Groups(
            self.input_ids[index, start:],
            attention_mask[:, start:],
            self.token_ids[index],
            self.rewards[index],
            self.scores[index],
            self.hits[index],
            self.trie,
            users=None if self.users is None else self.users[index],
        )
