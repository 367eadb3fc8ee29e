"""A GRPO step on titles with forced tokens left out, against the same step that runs every token.

Run: python -m bench.step.titles DATA TOKENIZER [--model FOLDER] [--prompts N] [--rounds N] [--threads N]

DATA has titles; an item is its title in the tokens of TOKENIZER. Without --model the small Qwen2 of `cases` with that
vocabulary and random weights. A step is rollout, loss and backward behind ReRe's instruction and drawn histories, every
fifth prompt's target one that the search finds. Both ways take turns; completions and gradients are compared before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from bench.cases.ratios import PolicyShape, make_model
from tawin.catalog.catalog import Catalog, build_catalog
from tawin.catalog.tokenizer import load_tokenizer
from tawin.config import CatalogConfig, GRPOConfig, PromptConfig
from tawin.data.dataset import load_dataset
from tawin.model.policy import load_model
from tawin.rl.groups import Groups
from tawin.rl.loss import group_loss
from tawin.rl.rollout import roll_out

# Of a gradient's norm: a sum over some thousand tokens in another order, through many layers in fp32.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Step:
    """The groups of a step, its loss, and the tokens that went through the model in rollout and policy forward."""

    groups: Groups
    loss: float
    tokens: tuple[int, int]


@contextmanager
def every_token() -> Iterator[None]:
    """Within it nothing is left out: a search runs every step, a policy's forward every token."""

    def all_tokens(token_ids: Tensor, *_: Any) -> Tensor:
        return token_ids >= 0

    with (
        patch("tawin.search.decode.has_chains", lambda *_: False),
        patch("tawin.rl.loss.scored_tokens", all_tokens),
        patch("tawin.search.completions.scored_tokens", all_tokens),
    ):
        yield


def step(model: Any, catalog: Catalog, prompts: tuple[Tensor, Tensor], targets: Tensor, config: GRPOConfig) -> Step:
    """Rollout, loss and backward; the gradients are left on the parameters."""
    model.zero_grad()
    counted = [0, 0]
    part = 0

    def count(_embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counted[part] += inputs[0].numel()

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    with torch.no_grad():
        groups = roll_out(model, catalog, *prompts, targets, config, torch.Generator().manual_seed(0))
    part = 1
    live = groups.take(groups.live.nonzero()[:, 0])
    loss = group_loss(model, None, live, config, float(groups.valid.sum())).loss
    loss.backward()
    hook.remove()
    return Step(groups, float(loss.detach()), (counted[0], counted[1]))


def measure(model: Any, catalog: Catalog, normalizer: Any, prompts: int, rounds: int) -> str:
    """A line: tokens and median processor seconds of both ways, and their ratios."""
    draw = np.random.default_rng(0)
    histories = [draw.integers(catalog.num_items, size=size) for size in draw.integers(2, 9, prompts)]
    encoded = catalog.encode_histories(histories)
    config = GRPOConfig(group_size=16, normalizer=normalizer)
    targets = torch.as_tensor(draw.integers(catalog.num_items, size=prompts))
    found = step_targets(model, catalog, encoded, targets, config)

    def run() -> Step:
        return step(model, catalog, encoded, found, config)

    with every_token():
        before, expected = run(), gradients_of(model)
    after, got = run(), gradients_of(model)
    same = float((before.groups.token_ids == after.groups.token_ids).all(-1).float().mean())
    apart = float((got - expected).norm() / expected.norm())
    assert same == 1.0 and apart <= TOLERANCE, f"completions alike {same:.3f}, gradients apart {apart:.1e}"
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        with every_token():
            seconds[0].append(processor_seconds(run))
        seconds[1].append(processor_seconds(run))
    every, left_out = (float(np.median(part)) for part in seconds)
    return (
        f"{normalizer}: tokens of rollout {before.tokens[0]} -> {after.tokens[0]}, of policy {before.tokens[1]} -> "
        f"{after.tokens[1]}; processor seconds {every:.2f} -> {left_out:.2f}, {every / left_out:.2f} x; loss apart "
        f"{abs(before.loss - after.loss):.0e}, gradients {apart:.0e} of their norm"
    )


def processor_seconds(run: Callable[[], Step]) -> float:
    """Of this process, all threads together: what other work does to the machine is not in them."""
    start = time.process_time()
    run()
    return time.process_time() - start


def gradients_of(model: nn.Module) -> Tensor:
    """All gradients, one after another."""
    return torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None])


def step_targets(
    model: Any, catalog: Catalog, prompts: tuple[Tensor, Tensor], targets: Tensor, config: GRPOConfig
) -> Tensor:
    """int64 [B]: of every fifth prompt an item that the search finds, at ranks spread over the group."""
    with torch.no_grad():
        found = roll_out(model, catalog, *prompts, targets, config, torch.Generator()).token_ids
    chosen = targets.clone()
    for prompt in range(0, len(targets), 5):
        tokens = found[prompt, (prompt * 3) % found.shape[1]]
        width = catalog.token_ids.shape[1]
        chosen[prompt] = int(
            (catalog.token_ids == tokens[:width].masked_fill(tokens[:width] < 0, -1)).all(1).nonzero()[0]
        )
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step.titles", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a data folder with titles")
    parser.add_argument("tokenizer", type=Path, help="a folder with a tokenizer")
    parser.add_argument("--model", type=Path, help="a folder that transformers loads; default: the small Qwen2")
    parser.add_argument("--normalizer", action="append", choices=("trie", "vocab"), help="default: both")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own choice")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(str(options.tokenizer))
    catalog = build_catalog(
        load_dataset(options.data),
        tokenizer,
        CatalogConfig(item_tokens="title"),
        training_sequences=[],
        prompt=PromptConfig(style="rere"),
    )
    if options.model is None:
        model: Any = make_model(PolicyShape(text_tokens=len(tokenizer)), 0, 0)
    else:
        model = load_model(options.model)
    model.eval()
    for normalizer in options.normalizer or ("trie", "vocab"):
        print(measure(model, catalog, normalizer, options.prompts, options.rounds), flush=True)


if __name__ == "__main__":
    main()
