"""The catalogue: items <-> tokens. Which tokens an item is, the trie over them, and prompts and labels built from them.

A sequence is the prefix, then the tokens of one item after another; the completion of a prompt is the next item's
tokens. An item is its semantic id (a token a level, and one more where items share an id) or its title (the
tokenizer's own tokens and the end token). Items are dense indexes here; this module knows nothing of users, splits or
models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tawin_kernels import ItemTrie

from . import data
from .columns import (
    DataError,
    optional_array,
    read_integer_lists,
    read_integers,
    read_table,
    read_titles,
    require_distinct,
)
from .config import CatalogConfig
from .data import Dataset
from .ragged import Ragged, count_within
from .semantic_ids import build_semantic_ids
from .tokenizer import (
    make_semantic_tokenizer,
    prefix_tokens,
    semantic_token_names,
    semantic_tokens,
    title_tokens,
    train_title_tokenizer,
)

CATALOG_FILE = "catalog.json"
ITEMS_FILE = "items.parquet"
FORMAT = 1
IGNORED = -100  # the label of a token without a loss
PADDING = -1  # fills token_ids behind an item's last token


@dataclass(frozen=True, eq=False)
class Catalog:
    """Every item as tokens. Build it with `build_catalog` or `load_catalog`, not by hand."""

    item_ids: np.ndarray
    """int64 [items], the original ids."""
    titles: list[str | None] | None
    """One an item, None where an item has none; None: no item has one."""
    semantic_ids: list[tuple[int, ...]] | None
    """The codes behind the tokens, the one that tells shared ids apart included; None in title mode."""
    token_ids: torch.Tensor
    """int64 [items, longest item], -1 behind an item's last token."""
    trie: ItemTrie
    """The trie over token_ids."""
    item_nodes: torch.Tensor
    """int64 [items], the leaf at which each item ends."""
    prefix: tuple[int, ...]
    """The tokens before every history: <bos> and/or the instruction; never empty."""
    pad_token: int
    """What fills prompts; it is masked everywhere."""
    end_token: int | None
    """The last token of every item in title mode."""

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.item_ids)

    @cached_property
    def num_sequences(self) -> int:
        """Distinct token sequences: items may share one. Waits for the device once."""
        return int((self.trie.child_offsets.diff() == 0).sum())

    @property
    def max_item_length(self) -> int:
        """Tokens of the longest item."""
        return self.token_ids.shape[1]

    def to(self, device: torch.device | str) -> Catalog:
        """The same catalogue with its tensors on `device`; encoded prompts stay on the CPU."""
        moved = (self.token_ids.to(device), self.trie.to(device), self.item_nodes.to(device))
        return replace(self, token_ids=moved[0], trie=moved[1], item_nodes=moved[2])

    def title(self, item: int) -> str:
        """The item's title, or "item <id>" where it has none."""
        return _title(self.item_ids, self.titles, item)

    def index_of(self, item_id: int) -> int:
        """The dense index of an original id; ValueError for an id that the catalogue does not have."""
        try:
            return self._indexes[item_id]
        except KeyError:
            known = f"{self.num_items} items with ids from {self.item_ids.min()} to {self.item_ids.max()}"
            raise ValueError(f"item_id: expected an item of the catalogue ({known}), got {item_id!r}") from None

    def encode_histories(self, histories: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of histories (dense item indexes, oldest first; may be empty): the prefix, then the items' tokens.

        Returns input_ids and attention_mask, int64 [B, P], left-padded.
        """
        tokens, sequence, position, _ = self._tokens_of("histories", histories)
        lengths = np.bincount(sequence)
        columns = position + (lengths.max() - lengths)[sequence]
        return self._pad(tokens, sequence, columns)

    def encode_windows(
        self, windows: Sequence[np.ndarray], first_targets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Training sequences of windows (dense item indexes, oldest first): the prefix, then the items' tokens.

        Returns input_ids, attention_mask and labels, int64 [B, S], right-padded. Labels are input_ids at the tokens of
        items whose index in the window is at least first_targets of the window, else -100; they are not shifted.
        """
        if len(first_targets) != len(windows):
            raise ValueError(f"first_targets: expected one a window, {len(windows)}, got {len(first_targets)}")
        first = np.asarray(first_targets, dtype=np.int64)  # [B]
        if (first < 0).any():
            raise ValueError(f"first_targets: expected indexes into the windows, 0 or more, got {first.min()}")
        tokens, sequence, position, place = self._tokens_of("windows", windows)
        input_ids, attention_mask = self._pad(tokens, sequence, position)
        labels = torch.full_like(input_ids, IGNORED)
        is_target = place >= first[sequence]
        rows, columns = torch.from_numpy(sequence[is_target]), torch.from_numpy(position[is_target])
        labels[rows, columns] = torch.from_numpy(tokens[is_target])
        return input_ids, attention_mask, labels

    def save(self, folder: str | Path) -> None:
        """Writes items.parquet (item_id, title, semantic_id, token_ids) and catalog.json.

        A folder that holds this very catalogue is left as it is; DataError if it holds another one, or a data folder.
        """
        folder = Path(folder)
        if any((folder / name).exists() for name in (ITEMS_FILE, CATALOG_FILE)):
            self._require_same_as(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        tokens = [row[row != PADDING] for row in self.token_ids.cpu().numpy()]
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, type=pa.int64()),
                "title": optional_array(self.titles, self.num_items, pa.string()),
                "semantic_id": optional_array(self.semantic_ids, self.num_items, pa.list_(pa.int64())),
                "token_ids": pa.array(tokens, type=pa.list_(pa.int64())),
            }
        )
        header = {
            "format": FORMAT,
            "prefix": list(self.prefix),
            "pad_token": self.pad_token,
            "end_token": self.end_token,
        }
        # Each file appears whole or not at all, and the header last: a folder with a header is a catalogue.
        pq.write_table(table, folder / (ITEMS_FILE + ".part"))
        os.replace(folder / (ITEMS_FILE + ".part"), folder / ITEMS_FILE)
        (folder / (CATALOG_FILE + ".part")).write_text(json.dumps(header) + "\n")
        os.replace(folder / (CATALOG_FILE + ".part"), folder / CATALOG_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Catalog:
        """Reads a folder that `save` wrote; DataError names the file and what is wrong with it."""
        header = _read_header(Path(folder) / CATALOG_FILE)
        path = Path(folder) / ITEMS_FILE
        table = read_table(path, required=("item_id", "title", "semantic_id", "token_ids"))
        item_ids = read_integers(table, "item_id", path)
        if len(item_ids) == 0:
            raise DataError(f"{path}: expected at least one item, got none")
        require_distinct(item_ids, "item_id", path)
        semantic_ids = None
        if table["semantic_id"].null_count < len(item_ids):
            semantic_ids = [tuple(row) for row in _split(*read_integer_lists(table, "semantic_id", path))]
        try:
            return _assemble(
                item_ids=item_ids,
                titles=read_titles(table, path),
                semantic_ids=semantic_ids,
                tokens=_split(*read_integer_lists(table, "token_ids", path)),
                prefix=tuple(header["prefix"]),
                pad_token=header["pad_token"],
                end_token=header["end_token"],
            )
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path}: column 'token_ids': {error}") from error

    @cached_property
    def _indexes(self) -> dict[int, int]:
        return {int(item_id): index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _table(self) -> np.ndarray:
        """int64 [items + 1, width]: the tokens of every item and in the last row the prefix; -1 is padding."""
        width = max(self.max_item_length, len(self.prefix))
        table = np.full((self.num_items + 1, width), PADDING, dtype=np.int64)
        table[:-1, : self.max_item_length] = self.token_ids.cpu().numpy()
        table[-1, : len(self.prefix)] = self.prefix
        return table

    def _tokens_of(
        self, argument: str, sequences: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The tokens of all sequences one after another, each int64 [tokens]: the token, which sequence it belongs to,
        where it stands in that, and which item of the sequence it belongs to (-1 for the prefix)."""
        if len(sequences) == 0:
            raise ValueError(f"{argument}: expected at least one, got none")
        ragged = Ragged.of(sequences)
        items, counts = ragged.flat().astype(np.int64, copy=False), ragged.lengths
        if len(items) and not (items.min() >= 0 and items.max() < self.num_items):
            raise ValueError(
                f"{argument}: expected dense item indexes 0..{self.num_items - 1}, got {items.min()}..{items.max()}"
            )
        rows = np.insert(items, np.cumsum(counts) - counts, self.num_items)  # the prefix's row before each sequence
        row_sequence = np.repeat(np.arange(len(counts)), counts + 1)
        row_place = count_within(counts + 1) - 1

        tokens = self._table[rows]  # [rows, width]
        real = tokens != PADDING
        row_lengths = real.sum(axis=1)
        sequence = np.repeat(row_sequence, row_lengths)
        position = count_within(np.bincount(sequence))
        return tokens[real], sequence, position, np.repeat(row_place, row_lengths)

    def _pad(self, tokens: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (int(rows.max()) + 1, int(columns.max()) + 1)
        input_ids = np.full(shape, self.pad_token, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        input_ids[rows, columns] = tokens
        attention_mask[rows, columns] = 1
        return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)

    def _require_same_as(self, folder: Path) -> None:
        try:
            other = Catalog.load(folder)
        except DataError as error:
            raise DataError(
                f"{folder}: expected no {ITEMS_FILE} and {CATALOG_FILE}, or this very catalogue, but what is there is "
                f"no catalogue ({error}); choose another folder"
            ) from error
        same = (
            np.array_equal(self.item_ids, other.item_ids)
            and (self.titles or [None] * self.num_items) == (other.titles or [None] * other.num_items)
            and self.semantic_ids == other.semantic_ids
            and torch.equal(self.token_ids.cpu(), other.token_ids)
            and (self.prefix, self.pad_token, self.end_token) == (other.prefix, other.pad_token, other.end_token)
        )
        if not same:
            raise DataError(f"{folder}: holds another catalogue, of {other.num_items} items; choose another folder")


def build_catalog(
    dataset: Dataset,
    tokenizer: Any,
    config: CatalogConfig,
    *,
    training_sequences: Sequence[np.ndarray],
    seed: int = 0,
    semantic_ids: Sequence[tuple[int, ...]] | None = None,
) -> Catalog:
    """Turns every item of a dataset into tokens of `tokenizer`.

    In "semantic_id" mode the tokens of all codes that the tokenizer lacks are added to it as ordinary tokens: whoever
    holds the model resizes its embeddings to len(tokenizer). In "title" mode an item is " " + title and the end token;
    items with the same title share their tokens, and text that spells a special token is read as text.

    training_sequences: dense item indexes; all that built semantic ids see (config.vectors aside).
    semantic_ids: used as they are, in place of the data's or built ones.

    Raises:
        ValueError: a tokenizer without an end token in title mode, or one that reads no text where it has to; more
            levels than letters; title mode on data without titles (DataError).
    """
    if config.item_tokens == "title":
        _require_titles(dataset)
        codes, tokens = None, title_tokens(_titles(dataset), tokenizer)
    else:
        if semantic_ids is None:
            semantic_ids = build_semantic_ids(dataset, config, training_sequences=training_sequences, seed=seed)
        if len(semantic_ids) != len(dataset.items):
            raise ValueError(f"semantic_ids: expected one an item, {len(dataset.items)}, got {len(semantic_ids)}")
        codes = list(semantic_ids)
        tokens = semantic_tokens(codes, tokenizer)
    prefix = prefix_tokens(tokenizer, config.instruction)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return _assemble(
        item_ids=dataset.items.item_ids,
        titles=dataset.items.titles,
        semantic_ids=codes,
        tokens=tokens,
        prefix=prefix,
        # Padding is masked everywhere, so that any token will do where the tokenizer has none for it.
        pad_token=next((token for token in special if token is not None), prefix[0]),
        end_token=tokenizer.eos_token_id if config.item_tokens == "title" else None,
    )


def make_tokenizer(
    dataset: Dataset, config: CatalogConfig, semantic_ids: Sequence[tuple[int, ...]] | None = None
) -> Any:
    """The small tokenizer for when no model brings one: of the semantic ids' codes, or trained on the titles."""
    if config.item_tokens == "title":
        _require_titles(dataset)
        return train_title_tokenizer(_titles(dataset), config.title_vocabulary)
    if semantic_ids is None:
        raise ValueError("semantic_ids: expected the ids of all items for a tokenizer of semantic ids, got None")
    return make_semantic_tokenizer(semantic_token_names(semantic_ids))


def load_catalog(
    folder: str | Path,
    tokenizer: Any = None,
    *,
    item_tokens: Literal["semantic_id", "title"] = "semantic_id",
    separate_shared_ids: bool = True,
    levels: int = 3,
    codes: int = 256,
    vectors: str | Path | None = None,
    seed: int = 0,
) -> Catalog:
    """The catalogue of a data folder, or one that `Catalog.save` wrote (then the options do not matter).

    Ids that have to be built see every user's items but the last two, as training does. Without a tokenizer a small
    one is made (as the training run does without a model); with one, new tokens are added to it: see `build_catalog`.

    Args:
        folder: a data folder, or one of a saved catalogue (a run's `catalog`).
        tokenizer: of the model that will read the tokens; None: a small one.
        item_tokens, separate_shared_ids, levels, codes, vectors: the options of `catalog` in the config.
        seed: of the clustering that builds ids.

    Raises:
        DataError: a folder that cannot be used.
        ValueError: a tokenizer that is smaller than the saved catalogue's tokens, or does not fit: see `build_catalog`.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: expected an int of at least 0, got {seed!r}")
    if (Path(folder) / CATALOG_FILE).exists():
        catalog = Catalog.load(folder)
        largest = int(catalog.token_ids.max())
        if tokenizer is not None and largest >= len(tokenizer):
            raise ValueError(
                f"tokenizer: expected the one that {folder} was built with, token {largest} included, "
                f"got one of {len(tokenizer)} tokens"
            )
        return catalog

    dataset = data.load_dataset(folder)
    config = CatalogConfig(
        item_tokens=item_tokens,
        separate_shared_ids=separate_shared_ids,
        levels=levels,
        codes=codes,
        vectors=None if vectors is None else str(vectors),
    )
    training = data.training_sequences(dataset)
    semantic_ids = None
    if item_tokens == "semantic_id":
        semantic_ids = build_semantic_ids(dataset, config, training_sequences=training, seed=seed)
    if tokenizer is None:
        tokenizer = make_tokenizer(dataset, config, semantic_ids)
    return build_catalog(dataset, tokenizer, config, training_sequences=training, seed=seed, semantic_ids=semantic_ids)


def _assemble(
    *,
    item_ids: np.ndarray,
    titles: list[str | None] | None,
    semantic_ids: list[tuple[int, ...]] | None,
    tokens: Sequence[Sequence[int]],
    prefix: tuple[int, ...],
    pad_token: int,
    end_token: int | None,
) -> Catalog:
    lengths = np.array([len(row) for row in tokens])
    token_ids = np.full((len(tokens), lengths.max()), PADDING, dtype=np.int64)  # [I, L]
    token_ids[np.arange(token_ids.shape[1]) < lengths[:, None]] = list(chain.from_iterable(tokens))
    padded = torch.from_numpy(token_ids)
    trie = ItemTrie.from_sequences(padded, lengths=torch.from_numpy(lengths))
    return Catalog(item_ids, titles, semantic_ids, padded, trie, trie.leaf_of_item, prefix, pad_token, end_token)


def _require_titles(dataset: Dataset) -> None:
    if dataset.items.titles is None:
        raise DataError(
            f"{dataset.name}: column 'title': item_tokens 'title' needs titles, the data has none; use 'semantic_id'"
        )


def _titles(dataset: Dataset) -> list[str]:
    return [_title(dataset.items.item_ids, dataset.items.titles, item) for item in range(len(dataset.items))]


def _title(item_ids: np.ndarray, titles: list[str | None] | None, item: int) -> str:
    title = titles[item] if titles is not None else None
    return title if title and title.strip() else f"item {item_ids[item]}"


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected the JSON file that Catalog.save writes, cannot read it: {error}") from error

    def is_token(value: object) -> bool:
        return type(value) is int and value >= 0

    expected = {"format", "prefix", "pad_token", "end_token"}
    if not isinstance(header, dict) or set(header) != expected or header["format"] != FORMAT:
        raise DataError(f"{path}: expected the keys {sorted(expected)} with format {FORMAT}, got {header}")
    prefix, end_token = header["prefix"], header["end_token"]
    if not (isinstance(prefix, list) and prefix and all(map(is_token, prefix))):
        raise DataError(f"{path}: prefix: expected a list of at least one token, got {prefix!r}")
    if not is_token(header["pad_token"]) or not (end_token is None or is_token(end_token)):
        raise DataError(f"{path}: expected tokens of 0 or more as pad_token and end_token (or null), got {header}")
    return header


def _split(values: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []
