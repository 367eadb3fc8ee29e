"""The catalogue: items <-> tokens. Which tokens an item is, the trie over them, and prompts and labels built from them.

A sequence is the prefix, then the tokens of one item after another, where a prompt's template has it with text between
them and behind the last one; the completion of a prompt is the next item's tokens. An item is one token of its own, its
semantic id (a token a level, and one more where items share an id) or its title (the tokenizer's own tokens and the end
token). Items are dense indexes here; this module knows nothing of users, splits or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tawin_kernels import ItemTrie

from ..config import CatalogConfig, PromptConfig
from ..config.data import ItemTokens, VectorSource
from ..data.columns import (
    DataError,
    optional_array,
    optional_column,
    read_integer_lists,
    read_integers,
    read_source_ids,
    read_table,
    read_titles,
    require_distinct,
)
from ..data.dataset import Dataset, Items, load_dataset, training_sequences
from ..data.item_columns import arrays_of, read_item_columns
from ..data.ragged import Ragged
from ..data.source_ids import order_of
from ..data.transitions import Transitions
from ..run.atomic import replacing_file
from .encoding import Encoder, padded_table, rows_of
from .header import HEADER, read_header, write_header
from .prompt import prompt_tokens
from .semantic_ids import build_semantic_ids
from .tokenizer import (
    item_token_names,
    item_tokens,
    make_semantic_tokenizer,
    semantic_token_names,
    semantic_tokens,
    train_title_tokenizer,
)

CATALOG_FILE = "catalog.json"
ITEMS_FILE = "items.parquet"
TRANSITIONS_FILE = "transitions.safetensors"
TITLE_VOCABULARY = 2048  # tokens of the tokenizer that is trained on titles, at most


@dataclass(frozen=True, eq=False)
class Catalog:
    """Every item as tokens. Build it with `build_catalog` or `load_catalog`, not by hand."""

    item_ids: np.ndarray
    """int64 [items], the original ids."""
    titles: list[str | None] | None
    """One per item, None where an item has none; None: no item has one."""
    semantic_ids: list[tuple[int, ...]] | None
    """The codes behind the tokens, the one that tells shared ids apart included; None where tokens are no codes."""
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
    separator: tuple[int, ...] = ()
    """The tokens between two items of a history."""
    suffix: tuple[int, ...] = ()
    """The tokens behind the last item of a history."""
    empty: tuple[int, ...] | None = None
    """The prompt of a history without items; None: the prefix and the suffix."""
    history_tokens: torch.Tensor | None = None
    """As token_ids, on the CPU, of items within a history; None: as token_ids."""
    transitions: Transitions | None = None
    """Counts of the training data that recommendations are mixed with; None: none are."""
    source_ids: list[str] | None = None
    """The log's own ids, distinct, by which items are known in other folders; None where earlier versions saved it."""

    columns: pa.Table | None = None
    """What else the data says of items, a row per item; None: nothing. Other prices are no other catalogue."""

    @property
    def one_target(self) -> bool:
        """Whether a training sequence has one target, its last item: text stands between or behind the items."""
        return bool(self.separator or self.suffix) or self.history_tokens is not None

    @property
    def item_tokens(self) -> ItemTokens:
        """What an item's tokens are, as in the config."""
        if self.semantic_ids is not None:
            return "semantic_id"
        return "item" if self.end_token is None else "title"

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.item_ids)

    @property
    def num_sequences(self) -> int:
        """Distinct token sequences: items may share one. Waits for the device once."""
        return self.trie.num_sequences

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
        return _title(self.names, self.titles, item)

    @cached_property
    def names(self) -> list[str]:
        """What items are called outside: the log's own ids as text, or the original ids where these are not known."""
        return [str(item) for item in self.item_ids.tolist()] if self.source_ids is None else self.source_ids

    @cached_property
    def has_numbers(self) -> bool:
        """Whether the log's own ids are the whole numbers in `item_ids`."""
        return self.source_ids is None or self.source_ids == [str(item) for item in self.item_ids.tolist()]

    def index_of(self, item_id: int | str) -> int:
        """The dense index of an original id, or, of a text, of the log's own id.

        ValueError for an id that the catalogue does not have.
        """
        if isinstance(item_id, str):
            if item_id not in self._named:
                raise ValueError(f"expected ids of the log, like {', '.join(self.names[:3])}, got {item_id!r}")
            return self._named[item_id]
        try:
            return self._indexes[item_id]
        except KeyError:
            known = f"{self.num_items} items with ids from {self.item_ids.min()} to {self.item_ids.max()}"
            raise ValueError(f"item_id: expected an item of the catalogue ({known}), got {item_id!r}") from None

    def arrange(self, items: Items, where: str) -> Items:
        """Items of a data folder in the catalogue's order; DataError, which `where` begins, if they are not its items.

        They are known by the log's own ids; by the original ones in a catalogue of earlier versions.
        """
        if self.source_ids is None:
            if not np.array_equal(items.item_ids, self.item_ids):
                raise DataError(f"{where}: expected the items that the run was trained on, got others")
            return items
        order = order_of(items.names, self.source_ids, where)
        return items if order is None else items.take(order)

    def encode_histories(self, histories: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of histories (dense item indexes, oldest first; may be empty).

        They are the prefix, the items' tokens and the suffix. Returns input_ids and attention_mask, int64 [B, P],
        left-padded.
        """
        return self._encoder.prompts(histories)

    def encode_windows(
        self, windows: Sequence[np.ndarray], first_targets: Sequence[int] | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Training sequences of windows (dense item indexes, oldest first).

        Returns input_ids, attention_mask and labels, int64 [B, S], right-padded. They are the prefix, then the items'
        tokens; labels are input_ids at the tokens of items whose index in the window is at least first_targets of the
        window, else -100; they are not shifted. With `one_target`, first_targets must be that of the last item: they
        are the prompt of the items before it, then its tokens as it completes a prompt, which alone have labels.
        """
        return self._encoder.windows(windows, first_targets, one_target=self.one_target)

    def label_weights(
        self, windows: Ragged, first_targets: Sequence[int] | np.ndarray, labels: torch.Tensor
    ) -> torch.Tensor | None:
        """float32 [B, S], what each label weighs, 0 where there is none; None where the windows have no weights.

        windows, first_targets, labels: what `encode_windows` was given, and the labels [B, S] that it gave.
        """
        return self._encoder.label_weights(windows, first_targets, labels, one_target=self.one_target)

    def save(self, folder: str | Path) -> None:
        """Writes items.parquet (item_id, source_id, title, semantic_id, token_ids) and catalog.json.

        A folder that holds this very catalogue is left as it is; DataError if it holds another one, or a data folder.
        """
        folder = Path(folder)
        if any((folder / name).exists() for name in (ITEMS_FILE, CATALOG_FILE)):
            self._require_same_as(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        history = None if self.history_tokens is None else list(rows_of(self.history_tokens))
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, type=pa.int64()),
                "source_id": optional_array(self.source_ids, self.num_items, pa.string()),
                "title": optional_array(self.titles, self.num_items, pa.string()),
                "semantic_id": optional_array(self.semantic_ids, self.num_items, pa.list_(pa.int64())),
                "token_ids": pa.array(list(rows_of(self.token_ids)), type=pa.list_(pa.int64())),
                "history_tokens": optional_array(history, self.num_items, pa.list_(pa.int64())),
                **arrays_of(self.columns),
            }
        )
        if self.transitions is not None:
            self.transitions.save(folder / TRANSITIONS_FILE)
        # Each file appears whole or not at all, and the header last: a folder with a header is a catalogue.
        with replacing_file(folder / ITEMS_FILE) as part:
            pq.write_table(table, part, write_page_checksum=True)
        write_header(folder / CATALOG_FILE, self._around)

    @classmethod
    def load(cls, folder: str | Path) -> Catalog:
        """Reads a folder that `save` wrote; DataError names the file and what is wrong with it."""
        header = read_header(Path(folder) / CATALOG_FILE)
        path = Path(folder) / ITEMS_FILE
        columns = ("item_id", "title", "semantic_id", "token_ids")
        table = read_table(path, required=columns, optional=("history_tokens", "source_id"))
        item_ids = read_integers(table, "item_id", path)
        if len(item_ids) == 0:
            raise DataError(f"{path}: expected at least one item, got none")
        require_distinct(item_ids, "item_id", path)
        semantic_ids = None
        if table["semantic_id"].null_count < len(item_ids):
            semantic_ids = [tuple(row) for row in _split(*read_integer_lists(table, "semantic_id", path))]
        history = None
        if optional_column(table, "history_tokens") is not None:
            history = _split(*read_integer_lists(table, "history_tokens", path))
        transitions = None
        if (Path(folder) / TRANSITIONS_FILE).exists():
            transitions = Transitions.load(Path(folder) / TRANSITIONS_FILE, len(item_ids))
        try:
            catalog = _assemble(
                item_ids=item_ids,
                titles=read_titles(table, path),
                source_ids=read_source_ids(table, path),
                semantic_ids=semantic_ids,
                tokens=_split(*read_integer_lists(table, "token_ids", path)),
                history=history,
                columns=read_item_columns(path),
                **header,
            )
            return replace(catalog, transitions=transitions)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path}: column 'token_ids': {error}") from error

    @cached_property
    def _indexes(self) -> dict[int, int]:
        return {int(item_id): index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _named(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _encoder(self) -> Encoder:
        completions = rows_of(self.token_ids)
        history = completions if self.history_tokens is None else rows_of(self.history_tokens)
        parts = (self.prefix, self.separator, self.suffix, self._empty)
        around = [np.array(part, dtype=np.int64) for part in parts]
        return Encoder(history, completions if self.one_target else Ragged.of([]), Ragged.of(around), self.pad_token)

    @property
    def _around(self) -> dict[str, Any]:
        """What catalog.json holds."""
        values = {name: getattr(self, name) for name in HEADER}
        return {**values, "empty": self._empty}

    @property
    def _empty(self) -> tuple[int, ...]:
        return self.prefix + self.suffix if self.empty is None else self.empty

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
            and self.source_ids == other.source_ids
            and (self.titles or [None] * self.num_items) == (other.titles or [None] * other.num_items)
            and self.semantic_ids == other.semantic_ids
            and torch.equal(self.token_ids.cpu(), other.token_ids)
            and _equal(self.history_tokens, other.history_tokens)
            and self._around == other._around
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
    prompt: PromptConfig | None = None,
) -> Catalog:
    """Turns every item of a dataset into tokens of `tokenizer`.

    In "item" mode an item is one token, <item_55> for the one that the log calls 55; in "semantic_id" mode a token
    a code. The tokens that the tokenizer lacks are added to it as ordinary tokens: whoever holds the model resizes its
    embeddings to len(tokenizer). In "title" mode an item is " " + title and the end token;
    items with the same title share their tokens, and text that spells a special token is read as text.

    training_sequences: dense item indexes; all that built semantic ids see (config.vectors aside).
    semantic_ids: used as they are, in place of the data's or built ones.
    prompt: the text around histories; None: none but `config.instruction`.

    Raises:
        ValueError: a tokenizer without an end token in title mode, or one that reads no text where it has to; more
            levels than letters; title mode on data without titles (DataError); a prompt that does not suit the
            tokenizer (`prompt_tokens`).
    """
    titles, history = config.item_tokens == "title", None
    if titles:
        _require_titles(dataset)
    around = prompt_tokens(tokenizer, prompt or PromptConfig(), config.instruction, titles=titles)
    codes = None
    if titles:
        tokens, history = around.spell(_titles(dataset), tokenizer)
    elif config.item_tokens == "item":
        tokens = item_tokens(dataset.items.names, tokenizer)
    else:
        if semantic_ids is None:
            semantic_ids = build_semantic_ids(dataset, config, training_sequences=training_sequences, seed=seed)
        if len(semantic_ids) != len(dataset.items):
            raise ValueError(f"semantic_ids: expected one an item, {len(dataset.items)}, got {len(semantic_ids)}")
        codes = list(semantic_ids)
        tokens = semantic_tokens(codes, tokenizer)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return _assemble(
        item_ids=dataset.items.item_ids,
        titles=dataset.items.titles,
        source_ids=dataset.items.names,
        columns=dataset.items.columns,
        semantic_ids=codes,
        tokens=tokens,
        history=history,
        prefix=around.prefix,
        separator=around.separator,
        suffix=around.suffix,
        empty=around.empty,
        # Padding is masked everywhere, so that any token will do where the tokenizer has none for it.
        pad_token=next((token for token in special if token is not None), around.prefix[0]),
        end_token=tokenizer.eos_token_id if titles else None,
    )


def make_tokenizer(
    dataset: Dataset, config: CatalogConfig, semantic_ids: Sequence[tuple[int, ...]] | None = None
) -> Any:
    """The small tokenizer for when no model brings one: of the items, of their codes, or trained on the titles."""
    if config.item_tokens == "item":
        return make_semantic_tokenizer(item_token_names(dataset.items.names))
    if config.item_tokens == "title":
        _require_titles(dataset)
        return train_title_tokenizer(_titles(dataset), TITLE_VOCABULARY)
    if semantic_ids is None:
        raise ValueError("semantic_ids: expected the ids of all items for a tokenizer of semantic ids, got None")
    return make_semantic_tokenizer(semantic_token_names(semantic_ids))


def load_catalog(
    folder: str | Path,
    tokenizer: Any = None,
    *,
    item_tokens: ItemTokens = "semantic_id",
    separate_shared_ids: bool = True,
    rebuild_ids: bool = False,
    levels: int = 3,
    codes: int = 256,
    vectors: str | Path | None = None,
    text_encoder: str | Path | None = None,
    vectors_from: Sequence[VectorSource] = (),
    seed: int = 0,
) -> Catalog:
    """The catalogue of a data folder, or one that `Catalog.save` wrote (then the options do not matter).

    Ids that have to be built see every user's items but the last two, as training does. Without a tokenizer a small
    one is made (as the training run does without a model); with one, new tokens are added to it: see `build_catalog`.

    Args:
        folder: a data folder, or one of a saved catalogue (a run's `catalog`).
        tokenizer: of the model that will read the tokens; None: a small one.
        item_tokens, separate_shared_ids, rebuild_ids, levels, codes, vectors, text_encoder, vectors_from: the options
            of `catalog` in the config.
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

    dataset = load_dataset(folder)
    config = CatalogConfig(
        item_tokens=item_tokens,
        separate_shared_ids=separate_shared_ids,
        rebuild_ids=rebuild_ids,
        levels=levels,
        codes=codes,
        vectors=None if vectors is None else str(vectors),
        text_encoder=None if text_encoder is None else str(text_encoder),
        vectors_from=tuple(vectors_from),
    )
    training = training_sequences(dataset)
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
    source_ids: list[str] | None,
    semantic_ids: list[tuple[int, ...]] | None,
    tokens: Sequence[Sequence[int]],
    history: Sequence[Sequence[int]] | None,
    empty: tuple[int, ...],
    **around: Any,
) -> Catalog:
    padded, lengths = padded_table(tokens)
    trie = ItemTrie.from_sequences(padded, lengths=lengths)
    return Catalog(
        item_ids,
        titles,
        semantic_ids,
        padded,
        trie,
        trie.leaf_of_item,
        empty=None if empty == around["prefix"] + around["suffix"] else empty,
        history_tokens=None if history is None else padded_table(history)[0],
        source_ids=source_ids,
        **around,
    )


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first.cpu(), second.cpu())


def _require_titles(dataset: Dataset) -> None:
    if dataset.items.titles is None:
        raise DataError(
            f"{dataset.name}: column 'title': item_tokens 'title' needs titles, the data has none; use 'semantic_id'"
        )


def _titles(dataset: Dataset) -> list[str]:
    names = dataset.items.names
    return [_title(names, dataset.items.titles, item) for item in range(len(names))]


def _title(names: list[str], titles: list[str | None] | None, item: int) -> str:
    title = titles[item] if titles is not None else None
    return title if title and title.strip() else f"item {names[item]}"


def _split(values: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []
