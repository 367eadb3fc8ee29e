"""What is measured: each case is one piece of work, done our way and the peers' way, with a check that both agree.

The set-up is a small Qwen2 (hidden 256, 4 layers, 19,768 tokens: 19,000 of text and 256 for each of three levels of
semantic ids), random weights, fp32, sdpa attention. It has 4 heads and an MLP 3 times as wide as the hidden state, as
the policy that tawin builds by default. The catalogue is the Amazon Industrial one if the data folder is there, else
one drawn with the same shape of trie. Nothing here reads a clock.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tawin_kernels import ItemTrie, grpo_loss, linear_log_probs
from torch import Tensor
from torch.nn.functional import pad
from transformers import Qwen2Config, Qwen2ForCausalLM

from tawin import beam_search
from tawin.data.dataset import Dataset, load_dataset
from tawin.model.backbone import backbone
from tawin.model.token_tree import completion_states

from ..peers import PrefixTable, generate_beam_search, repeated_prompt_log_probs

# Scores are sums of three fp32 log-probs of about -10: one rounding of such a sum is 2e-6, and batches of another shape
# add up their products in another order.
SCORE_TOLERANCE = 2e-5
LOG_PROB_TOLERANCE = 1e-5
# Of a gradient's norm. Each is a sum over up to 20,992 tokens in another order: fp32's 6e-8 times about sqrt(20,992).
GRADIENT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PolicyShape:
    """The model of a case."""

    text_tokens: int = 19_000
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 768
    key_value_heads: int | None = None  # None: as many as heads


QWEN2_5_HALF_BILLION = PolicyShape(
    text_tokens=151_936, hidden_size=896, layers=24, heads=14, intermediate_size=4864, key_value_heads=2
)


@dataclass(frozen=True)
class Case:
    """One piece of work. `check` runs both ways, raises AssertionError unless they agree, and says how well they do."""

    name: str
    shape: str
    goal: float  # how many times as fast ours shall be
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    check: Callable[[], str]


def make_model(
    shape: PolicyShape, levels: int = 3, codes: int = 256, *, device: torch.device | str = "cpu", seed: int = 0
) -> Any:
    """A Qwen2 with random weights in eval mode."""
    config = Qwen2Config(
        vocab_size=shape.text_tokens + levels * codes,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads or shape.heads,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval().to(device)


def semantic_ids(folder: Path | None = None) -> tuple[str, np.ndarray]:
    """Name and semantic ids, int64 [items, 3], of the industrial catalogue, or of a drawn one where there is no data.

    folder: as in `industrial_dataset`.
    """
    dataset = industrial_dataset(folder)
    if dataset is None:
        return "drawn like industrial", draw_semantic_ids()
    assert dataset.items.semantic_ids is not None
    return "industrial", np.array(dataset.items.semantic_ids, dtype=np.int64)


def industrial_dataset(folder: Path | None = None) -> Dataset | None:
    """The Amazon Industrial catalogue and its users, None where there is no data.

    folder: holds `industrial`; None: the environment's TAWIN_DATA, or ../shared/data beside the repository.
    """
    if folder is None:
        folder = Path(os.environ.get("TAWIN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    return load_dataset(folder / "industrial") if (folder / "industrial").is_dir() else None


def draw_semantic_ids(seed: int = 0) -> np.ndarray:
    """int64 [3686, 3]: 48 first codes, 2,295 pairs, 3,670 distinct ids and 16 repeated ones, as industrial has."""
    draw = np.random.default_rng(seed)

    def one_level_more(prefixes: np.ndarray, count: int) -> np.ndarray:
        """`count` distinct prefix * 256 + code, every prefix at least once."""
        first = prefixes * 256 + draw.integers(256, size=len(prefixes))
        others = np.setdiff1d((prefixes[:, None] * 256 + np.arange(256)).ravel(), first)
        return np.concatenate((first, draw.choice(others, count - len(first), replace=False)))

    distinct = one_level_more(one_level_more(np.arange(48), 2295), 3670)
    ids = np.concatenate((distinct, draw.choice(distinct, 16, replace=False)))
    return np.stack((ids // 256**2, ids // 256 % 256, ids % 256), axis=1)


def beam_search_case(
    *,
    prompts: int = 16,
    prompt_length: int = 128,
    beam_width: int = 16,
    model_shape: PolicyShape = PolicyShape(),
    dtype: torch.dtype = torch.float32,
    catalogue: tuple[str, np.ndarray] | None = None,
    goal: float = 20.0,
    device: torch.device | str = "cpu",
) -> Case:
    """Constrained beam search for a batch of prompts: `tawin.beam_search` against `generate`.

    catalogue: name and semantic ids, int64 [items, levels] below 256; None: `semantic_ids()`.
    """
    name, ids = semantic_ids() if catalogue is None else catalogue
    levels = ids.shape[1]
    items = torch.from_numpy(ids + model_shape.text_tokens + 256 * np.arange(levels))  # int64 [items, levels]
    trie = ItemTrie.from_sequences(items).to(device)
    table = PrefixTable.from_sequences(items.tolist())
    model = make_model(model_shape, levels, device=device).to(dtype)
    input_ids = _draw_tokens((prompts, prompt_length), model.config.vocab_size, seed=1).to(device)
    attention_mask = torch.ones_like(input_ids)

    def ours(model: Any = model) -> Any:
        return beam_search(model, input_ids, attention_mask, trie, beam_width)

    def peer(model: Any = model) -> Any:
        return generate_beam_search(model, input_ids, attention_mask, table, beam_width)

    def check() -> str:
        # In bf16 each way rounds on its own path and that moves scores further than items lie apart: compare in fp32.
        exact = model if dtype == torch.float32 else copy.deepcopy(model).float()
        mine, theirs = ours(exact), peer(exact)
        return compare_beams(mine.item_ids, mine.scores, theirs.item_ids, theirs.scores)

    return Case(
        name="beam search",
        shape=f"{prompts} prompts x {prompt_length}, {beam_width} beams, {len(ids)} items ({name})",
        goal=goal,
        ours=ours,
        peer=peer,
        check=check,
    )


def policy_forward_case(
    *,
    prompts: int = 8,
    prompt_length: int = 160,
    group_size: int = 16,
    completion_length: int = 4,
    model_shape: PolicyShape = PolicyShape(),
    device: torch.device | str = "cpu",
) -> Case:
    """The policy's forward, GRPO loss and backward for a batch of live groups: shared prompts against repeated ones.

    Both ways end in the same `grpo_loss` of the same advantages; they differ in how the log-probs come about.
    """
    model = make_model(model_shape, device=device)
    vocabulary = model.config.vocab_size
    input_ids = _draw_tokens((prompts, prompt_length), vocabulary, seed=1).to(device)
    attention_mask = torch.ones_like(input_ids)
    token_ids = _draw_tokens((prompts, group_size, completion_length), vocabulary, seed=2).to(device)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    advantages = torch.randn(prompts, group_size, generator=torch.Generator().manual_seed(3)).to(device)

    def shared_prompt_log_probs() -> Tensor:
        parts = backbone(model)
        states, rows = completion_states(parts, input_ids, attention_mask, token_ids)
        return linear_log_probs(states, parts.weight, token_ids, bias=parts.bias, rows=rows)

    def train_on(log_probs_of: Callable[[], Tensor]) -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = grpo_loss(log_probs_of(), mask, advantages)
        loss.loss.backward()
        return loss.log_probs

    def ours() -> Tensor:
        return train_on(shared_prompt_log_probs)

    def peer() -> Tensor:
        return train_on(lambda: repeated_prompt_log_probs(model, input_ids, attention_mask, token_ids))

    def check() -> str:
        expected = peer()
        expected_gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        got = ours()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        return compare_log_probs(got, expected) + "; " + compare_gradients(gradients, expected_gradients)

    return Case(
        name="policy forward + backward",
        shape=f"{prompts} prompts x {prompt_length}, {group_size} completions x {completion_length}",
        goal=10.0,
        ours=ours,
        peer=peer,
        check=check,
    )


def foundation_cases(device: torch.device | str = "cpu") -> list[Case]:
    """The cases whose ratios the project promises."""
    return [
        beam_search_case(device=device),
        policy_forward_case(device=device),
        policy_forward_case(prompts=2, prompt_length=512, completion_length=10, device=device),
    ]


def compare_beams(
    item_ids: Tensor, scores: Tensor, peer_item_ids: Tensor, peer_scores: Tensor, tolerance: float = SCORE_TOLERANCE
) -> str:
    """All [B, W], best first. Scores agree within `tolerance`; so do items, unless a tie within it swaps them."""
    present = scores.isfinite()
    assert torch.equal(present, peer_scores.isfinite()), "one way found fewer items than the other"
    gap = (scores - peer_scores)[present].abs().max().item()
    assert gap <= tolerance, f"scores differ by {gap:.2g}, allowed {tolerance:g}"
    is_close = (scores.diff(dim=1).abs() <= 2 * tolerance).cpu()  # [B, W - 1], to the next one
    # The last place may tie with an item that did not make it.
    may_swap = pad(is_close, (0, 1), value=True) | pad(is_close, (1, 0))
    same = (item_ids == peer_item_ids).cpu()  # [B, W]
    assert bool((same | may_swap).all()), f"items differ at {(~same & ~may_swap).nonzero().tolist()}"
    return f"{int(same.sum())} of {same.numel()} items the same, scores within {gap:.1e}"


def compare_log_probs(log_probs: Tensor, peer_log_probs: Tensor) -> str:
    """Both [B, G, L]."""
    gap = (log_probs - peer_log_probs).abs().max().item()
    assert gap <= LOG_PROB_TOLERANCE, f"log-probs differ by {gap:.2g}, allowed {LOG_PROB_TOLERANCE:g}"
    return f"log-probs within {gap:.1e}"


def compare_gradients(gradients: dict[str, Tensor | None], peer_gradients: dict[str, Tensor | None]) -> str:
    """Parameter by parameter: the norm of the difference over the norm of the peer's gradient."""
    gap = 0.0
    for name, expected in peer_gradients.items():
        got = gradients[name]
        assert got is not None and expected is not None, f"{name} has no gradient"
        gap = max(gap, ((got - expected).norm() / expected.norm()).item())
    assert gap <= GRADIENT_TOLERANCE, f"gradients differ by {gap:.2g} of their norm, allowed {GRADIENT_TOLERANCE:g}"
    return f"gradients within {gap:.1e} of their norm"


def _draw_tokens(shape: tuple[int, ...], vocabulary: int, *, seed: int) -> Tensor:
    """int64, no special token among them."""
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
