"""Completions that are items: beam search as a `rollout_func` of TRL, and a reward for the right item.

A catalogue says which item an id of the dataset means, by the log's own ids; a bare trie knows items by their rows.
Advantages and losses are others' work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from tawin_kernels import ItemTrie
from torch import Tensor

from ...catalog.catalog import Catalog
from ...model.backbone import backbone
from ...model.policy import evaluating, is_training
from ...model.tree_attention import prefill
from ...search.completions import beam_sequences, sequence_log_probs
from .policy_head import check_model


def item_reward(items: ItemTrie | Catalog, target: str = "target") -> Callable[..., list[float]]:
    """A reward function of TRL: 1 where the tokens of the completion are those of the target item, else 0.

    items: a catalogue (`tawin.load_catalog` of a run or an export), whose items are known by the log's own ids; or a
        trie, whose item i is row i of what it was built from. Items that share a sequence are all rewarded.
    target: the dataset's column with each prompt's item, an id or a row; or with a list of them, any of which is
        rewarded. An id may be text or a number, as `tawin recommend` takes it.
    """
    trie = items if isinstance(items, ItemTrie) else items.trie

    def item_match(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        if target not in columns:
            raise ValueError(f"target: expected a column of the dataset, got {target!r}; there are {sorted(columns)}")
        targets = [_rows_of(items, _ids_of(row, target), target) for row in columns[target]]
        rows = torch.tensor([item for row in targets for item in row], dtype=torch.int64)
        leaves = iter(trie.leaf_of_item[rows.to(trie.device)].tolist())
        nodes = _nodes_of(trie, completion_ids).tolist()
        return [float(node in [next(leaves) for _ in row]) for node, row in zip(nodes, targets, strict=True)]

    return item_match


def _ids_of(row: Any, target: str) -> list[int | str]:
    """One or several, of whatever holds whole numbers or texts: lists, arrays, tensors."""
    if isinstance(row, str):
        return [row]
    try:
        return [index(row)]
    except TypeError:
        try:
            return [item if isinstance(item, str) else index(item) for item in row]
        except TypeError:
            raise ValueError(
                f"{target}: expected an item's number or a list of them in each row, got {row!r}"
            ) from None


def _rows_of(items: ItemTrie | Catalog, ids: list[int | str], target: str) -> list[int]:
    """The rows of the catalogue that are meant."""
    if isinstance(items, Catalog):
        try:
            return [items.index_of(str(one)) for one in ids]  # as text: a number is the log's own id too
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from None
    rows = [one for one in ids if not isinstance(one, str)]
    if len(rows) < len(ids):
        raise ValueError(
            f"{target}: expected an item's number or a list of them in each row, got {ids[0]!r}; for ids of a log give "
            "item_reward the catalogue in place of the trie"
        )
    if rows and not (min(rows) >= 0 and max(rows) < items.num_items):
        raise ValueError(f"{target}: expected items in [0, {items.num_items}), got {min(rows)}..{max(rows)}")
    return rows


def _nodes_of(trie: ItemTrie, sequences: list[list[int]]) -> Tensor:
    """The node at which each sequence of tokens ends, -1 = outside of the trie: int64 [N]."""
    nodes = torch.zeros(len(sequences), dtype=torch.int64, device=trie.device)
    for depth in range(max(map(len, sequences), default=0)):
        tokens = torch.tensor([ids[depth] if depth < len(ids) else -1 for ids in sequences], device=trie.device)
        nodes = torch.where(tokens >= 0, trie.child(nodes, tokens), nodes)
    return nodes


def beam_rollout(items: ItemTrie | Catalog, *, prompts_at_once: int = 64) -> BeamRollout:
    """A `rollout_func` of TRL: constrained beam search, num_generations items per prompt, best first.

    items: a catalogue or a trie, on any device. prompts_at_once: prompts that one search takes, which bounds its
    memory.
    """
    return BeamRollout(items.trie if isinstance(items, Catalog) else items, prompts_at_once)


@dataclass(frozen=True)
class _Beams:
    """What was found for one prompt, best first."""

    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    scores: list[float]


class BeamRollout:
    """What `beam_rollout` makes: called with prompts and a trainer, it returns what TRL expects, one value per row."""

    def __init__(self, trie: ItemTrie, prompts_at_once: int) -> None:
        if not isinstance(trie, ItemTrie):
            raise TypeError(f"trie: expected an ItemTrie, got {type(trie).__name__}")
        if not isinstance(prompts_at_once, int) or isinstance(prompts_at_once, bool) or prompts_at_once < 1:
            raise ValueError(f"prompts_at_once: expected an int of at least 1, got {prompts_at_once!r}")
        self._trie = trie
        self._prompts_at_once = prompts_at_once
        self._num_sequences = int((trie.item_offsets.diff() > 0).sum())  # items may share one

    def check(self, trainer: Any) -> None:
        """ValueError where trainer and catalogue do not fit. `TAWinGRPOTrainer` asks at once, a rollout every time."""
        check_model(trainer)
        vocabulary, longest = backbone(trainer.model).vocabulary, self._trie.max_depth
        if self._trie.max_token >= vocabulary:
            raise ValueError(
                f"trie: expected tokens in [0, {vocabulary}), the model's vocabulary, got {self._trie.max_token}; "
                "build it with the model's tokenizer, or resize the model's embeddings"
            )
        for name in ("num_generations", "num_generations_eval"):
            if getattr(trainer, name) > self._num_sequences:
                raise ValueError(
                    f"args.{name}: expected at most {self._num_sequences}, the distinct sequences of the trie, got "
                    f"{getattr(trainer, name)}"
                )
        if trainer.temperature != 1.0:
            raise ValueError(f"args.temperature: expected 1.0, which beams are scored at, got {trainer.temperature}")
        if trainer.max_completion_length < longest:
            raise ValueError(
                f"args.max_completion_length: expected at least {longest}, the longest item's tokens, got "
                f"{trainer.max_completion_length}"
            )

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """prompts: as TRL gives them, each num_generations times in a row. Each distinct one is searched once.

        Returns prompt_ids, completion_ids, logprobs (a list a row, a value a token; log p over the whole vocabulary),
        beam_scores (their sums) and beam_ranks (0 = best).
        """
        self.check(trainer)
        group_size = trainer.num_generations if is_training(trainer.model) else trainer.num_generations_eval
        prompt_ids, images, _ = trainer._tokenize_prompts(_one_of_each_group(prompts, group_size))
        if images is not None:
            raise ValueError("prompts: expected text, got images; beam_rollout does not support them")
        distinct = [list(ids) for ids in dict.fromkeys(map(tuple, prompt_ids))]
        found: dict[tuple[int, ...], _Beams] = {}
        with evaluating(trainer.model), trainer.accelerator.autocast():
            for start in range(0, len(distinct), self._prompts_at_once):
                part = distinct[start : start + self._prompts_at_once]
                found.update(zip(map(tuple, part), self._search(part, trainer, group_size), strict=True))
        groups = [found[tuple(ids)] for ids in prompt_ids]
        return {
            "prompt_ids": [list(ids) for ids in prompt_ids for _ in range(group_size)],
            "completion_ids": [ids for beams in groups for ids in beams.completion_ids],
            "logprobs": [values for beams in groups for values in beams.logprobs],
            "beam_scores": [score for beams in groups for score in beams.scores],
            "beam_ranks": list(range(group_size)) * len(groups),
        }

    @torch.no_grad()
    def _search(self, prompts: list[list[int]], trainer: Any, beam_width: int) -> list[_Beams]:
        model, device, padding = trainer.model, trainer.accelerator.device, trainer._tokenizer.pad_token_id
        if self._trie.device != device:
            self._trie = self._trie.to(device)  # and kept: CUDA graphs know a trie by its identity
        length = max(map(len, prompts))
        input_ids = torch.tensor([[padding] * (length - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        prompt = prefill(backbone(model), input_ids, mask)
        sequences = beam_sequences(model, input_ids, mask, self._trie, beam_width, prompt=prompt)
        if bool((sequences.nodes < 0).any()):
            raise ValueError("model: expected finite log-probs, got -inf or NaN: beam search found too few items")
        log_probs = sequence_log_probs(model, input_ids, mask, sequences.token_ids, prompt=prompt)
        lengths = (sequences.token_ids >= 0).sum(-1).tolist()  # [B, W]

        def unpadded(values: Tensor) -> list[list[list[Any]]]:
            return [
                [row[:size] for row, size in zip(group, sizes, strict=True)]
                for group, sizes in zip(values.tolist(), lengths, strict=True)
            ]

        return list(map(_Beams, unpadded(sequences.token_ids), unpadded(log_probs), sequences.scores.tolist()))


def _one_of_each_group(prompts: list[Any], group_size: int) -> list[Any]:
    firsts = prompts[::group_size]
    if len(prompts) % group_size or any(prompt != firsts[row // group_size] for row, prompt in enumerate(prompts)):
        raise ValueError(
            f"prompts: expected whole groups in every process, each prompt {group_size} times in a row; got "
            f"{len(prompts)} rows that are not. Make per_device_train_batch_size x steps_per_generation a multiple of "
            "num_generations, and per_device_eval_batch_size one of num_generations_eval"
        )
    return firsts
