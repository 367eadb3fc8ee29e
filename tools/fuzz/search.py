"""What fuzzing draws for beam search: small decoders of five families with random weights, random catalogues, random
prompts, and NaN and infinities planted in the head, its bias and the embeddings.

The answer is held against the model's own forward over prompt and item, every item by itself, without cache or tree:
every item is one of the catalogue, no sequence comes twice, scores fall and are the sums of the log-probs. Where
nothing is planted as many come as there are, and where the beams hold the whole catalogue, exactly its best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tawin_kernels import ItemTrie
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tawin import beam_search
from tawin.search.completions import beam_sequences

from .trie import Items, draw_items, prefix_pair

VOCABULARY = 40
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attn_implementation": "sdpa",
}


def make_models() -> list[nn.Module]:
    """One of each family, with a bias on the head; their weights are drawn anew for every case."""
    makers: list[tuple[Any, Any, dict[str, Any]]] = [
        (Qwen2Config, Qwen2ForCausalLM, {}),
        (Qwen3Config, Qwen3ForCausalLM, {}),
        (LlamaConfig, LlamaForCausalLM, {}),
        (MistralConfig, MistralForCausalLM, {"sliding_window": 3}),
        (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 3, "layer_types": ["sliding_attention"]}),
    ]
    models = []
    for config, model, more in makers:
        sizes = {name: value for name, value in _SIZES.items() if config is not Qwen2Config or name != "head_dim"}
        made = model(config(**sizes, **more)).eval().requires_grad_(False)
        made.lm_head = nn.Linear(8, VOCABULARY, bias=True).requires_grad_(False)
        models.append(made)
    return models


def draw_weights(model: nn.Module, random: np.random.Generator) -> None:
    """Random weights of strong preferences; norms stay near 1."""
    torch.manual_seed(int(random.integers(0, 2**31)))
    scale = float(random.choice([0.2, 0.6, 1.2]))
    for parameter in model.parameters():
        parameter.normal_(std=scale) if parameter.dim() >= 2 else parameter.uniform_(0.5, 1.0)
    bias: Tensor = model.lm_head.bias  # type: ignore[union-attr, assignment]
    bias.normal_() if random.random() < 0.5 else bias.zero_()


def plant(model: Any, random: np.random.Generator) -> None:
    """One to three NaN or infinities, in the head's bias or weight or in a token's embedding."""
    for _ in range(int(random.integers(1, 4))):
        value = float(random.choice([np.nan, -np.inf, np.inf]))
        token = int(random.integers(3, VOCABULARY))
        kind = random.random()
        if kind < 0.5:
            model.lm_head.bias[token] = value
        elif kind < 0.75:
            model.lm_head.weight[token, int(random.integers(0, 8))] = value
        else:
            model.get_input_embeddings().weight[token, int(random.integers(0, 8))] = value


def draw_catalogue(random: np.random.Generator) -> Items:
    """Items of tokens from 3 on; some share a sequence."""
    items = [[3 + token % (VOCABULARY - 4) for token in item] for item in draw_items(random, most=20, tokens=9)]
    return [[*item, VOCABULARY - 1] for item in items] if prefix_pair(items) else items


def draw_prompts(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Left-padded prompts, int64 [B, P], and their mask."""
    B, P = int(random.integers(1, 4)), int(random.integers(1, 7))
    lengths = random.integers(1, P + 1, B)
    lengths[0] = P
    mask = np.arange(P) >= P - lengths[:, None]
    input_ids = np.where(mask, random.integers(1, VOCABULARY, (B, P)), 0)
    return torch.from_numpy(input_ids), torch.from_numpy(mask).long()


@torch.no_grad()
def item_scores(model: Any, input_ids: Tensor, attention_mask: Tensor, items: Items, normalizer: str) -> np.ndarray:
    """fp64 [B, items]: the summed log-probs of each item by plain forwards, one for each depth.

    A forward holds nothing behind the token that it predicts from: what is masked may be NaN, and 0 x NaN is NaN.
    """
    B = len(input_ids)
    scores = np.zeros((B, len(items)))
    for depth in range(max(map(len, items))):
        rows = [row for row, item in enumerate(items) if len(item) > depth]
        before = torch.tensor([items[row][:depth] for row in rows], dtype=torch.int64).view(len(rows), depth)
        whole = torch.cat((input_ids.repeat_interleave(len(rows), 0), before.repeat(B, 1)), 1)  # [B rows, P + depth]
        seen = torch.ones(B * len(rows), depth, dtype=torch.int64)
        mask = torch.cat((attention_mask.repeat_interleave(len(rows), 0), seen), 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        logits = model(input_ids=whole, attention_mask=mask, position_ids=positions, use_cache=False).logits
        logits = logits[:, -1].double().view(B, len(rows), -1)
        for place, row in enumerate(rows):
            item, own = items[row], logits[:, place]
            if normalizer == "trie":
                children = sorted({items[r][depth] for r in rows if items[r][:depth] == item[:depth]})
                scores[:, row] += (own[:, item[depth]] - own[:, children].logsumexp(-1)).numpy()
            else:
                scores[:, row] += own.log_softmax(-1)[:, item[depth]].numpy()
    return scores


def require_ranking(
    found: Any, items: Items, sequences: Items, right: np.ndarray, width: int, *, is_clean: bool
) -> None:
    """Every row of a BeamOutput. right: fp64 [B, sequences]."""
    number = {tuple(sequence): row for row, sequence in enumerate(sequences)}
    for b in range(len(right)):
        item_ids, scores = found.item_ids[b].tolist(), found.scores[b].double().numpy()
        present = [item >= 0 for item in item_ids]
        count = sum(present)
        assert present == [True] * count + [False] * (len(present) - count), f"a gap: {item_ids}"
        assert all(item < len(items) for item in item_ids), f"an item outside the catalogue: {item_ids}"
        assert len(set(item_ids[:count])) == count, f"an item twice: {item_ids}"
        assert np.isfinite(scores[:count]).all() and (scores[count:] == -np.inf).all(), scores
        assert (scores[: count - 1] >= scores[1:count]).all() if count else True, f"scores out of order: {scores}"
        rows = []
        for place, item in enumerate(item_ids[:count]):
            tokens = [token for token in found.token_ids[b, place].tolist() if token != -100]
            assert tokens == items[item], f"item {item} is {items[item]}, got {tokens}"
            assert found.mask[b, place].sum() == len(tokens)
            rows.append(number[tuple(tokens)])
            exact = right[b, rows[-1]]
            # fp32 logits by another order of sums, over up to five tokens.
            assert abs(scores[place] - exact) <= 2e-3 * max(1.0, abs(exact)), f"score {scores[place]}, expected {exact}"
        assert (found.token_ids[b, count:] == -100).all() and not found.mask[b, count:].any()
        if is_clean:
            assert count == min(width, len(items)), f"{count} items of {len(items)} in {width} places"
            if width >= len(sequences):
                best = np.sort(right[b][[number[tuple(item)] for item in items]])[::-1][:count]
                assert np.allclose(scores[:count], best, rtol=2e-3, atol=2e-3), f"{scores[:count]}, best {best}"


def beam_search_case() -> Callable[[np.random.Generator], str]:
    """A model, a catalogue and prompts; in two of five cases with something planted."""
    models = make_models()

    def case(random: np.random.Generator) -> str:
        model = models[int(random.integers(0, len(models)))]
        draw_weights(model, random)
        items = draw_catalogue(random)
        sequences = sorted({tuple(item) for item in items})
        trie = ItemTrie.from_sequences(items)
        input_ids, attention_mask = draw_prompts(random)
        is_clean = random.random() < 0.6
        if not is_clean:
            plant(model, random)
        width = int(random.choice([1, 2, 3, 5, 8, 30]))
        normalizer: Any = str(random.choice(["vocab", "trie"]))
        found = beam_search(model, input_ids, attention_mask, trie, width, normalizer=normalizer)
        own = [list(sequence) for sequence in sequences]
        right = item_scores(model, input_ids, attention_mask, own, normalizer)
        require_ranking(found, items, own, right, width, is_clean=is_clean)
        distinct = beam_sequences(model, input_ids, attention_mask, trie, width, normalizer=normalizer)
        for nodes in distinct.nodes.tolist():
            there = [node for node in nodes if node >= 0]
            assert len(set(there)) == len(there), f"a sequence twice: {nodes}"
            if is_clean:
                assert len(there) == min(width, len(sequences)), f"{len(there)} of {len(sequences)} sequences"
        return "passed"

    return case
