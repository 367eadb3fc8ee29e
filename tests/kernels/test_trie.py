"""ItemTrie: construction, numbering, refusals and files."""

from __future__ import annotations

import dataclasses
import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tawin_kernels import ItemTrie

from .brute_force import prefixes_breadth_first

ragged_items = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=20
)  # few tokens, so that items share sequences and prefixes
ARRAYS = ("child_offsets", "edge_tokens", "item_offsets", "item_ids")


def sequences_of(trie: ItemTrie) -> dict[int, tuple[int, ...]]:
    """Item -> tokens, read off the arrays from the root down."""
    prefixes: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(trie.num_nodes):
        for edge in range(int(trie.child_offsets[node]), int(trie.child_offsets[node + 1])):
            prefixes[edge + 1] = (*prefixes[node], int(trie.edge_tokens[edge]))
    return {item: prefixes[node] for node in range(trie.num_nodes) for item in trie.items_at(node).tolist()}


@given(ragged_items)
def test_items_come_back_from_the_arrays_with_their_end_token(items):
    trie = ItemTrie.from_sequences([list(item) for item in items], end_token=5)
    assert sequences_of(trie) == {i: (*item, 5) for i, item in enumerate(items)}
    assert trie.num_items == len(items)


@given(ragged_items)
def test_nodes_are_numbered_breadth_first_with_children_ascending(items):
    closed = [(*item, 5) for item in items]
    trie = ItemTrie.from_sequences([list(item) for item in items], end_token=5)
    prefixes = prefixes_breadth_first(closed)
    assert trie.num_nodes == len(prefixes)
    assert trie.edge_tokens.tolist() == [prefix[-1] for prefix in prefixes[1:]]
    children = [sum(p[:-1] == prefix for p in prefixes[1:]) for prefix in prefixes]
    assert trie.child_offsets.diff().tolist() == children
    assert trie.max_children == max(children)
    assert trie.max_depth == max(map(len, closed))
    assert trie.max_token == 5
    depths = [len(prefix) for prefix in prefixes]
    assert trie.level_offsets == (*(depths.index(d) for d in range(trie.max_depth + 1)), trie.num_nodes)
    assert trie.leaf_of_item.tolist() == [prefixes.index(item) for item in closed]
    assert trie.is_leaf(torch.arange(-1, trie.num_nodes)).tolist() == [False] + [count == 0 for count in children]


@given(ragged_items, st.integers(0, 4))
def test_with_an_end_token_that_items_contain_only_true_prefixes_conflict(items, end_token):
    closed = {(*item, end_token) for item in items}
    conflict = any(a != b and b[: len(a)] == a for a in closed for b in closed)
    if conflict:
        with pytest.raises(ValueError, match="proper prefix"):
            ItemTrie.from_sequences([list(item) for item in items], end_token=end_token)
    else:
        trie = ItemTrie.from_sequences([list(item) for item in items], end_token=end_token)
        assert sequences_of(trie) == {i: (*item, end_token) for i, item in enumerate(items)}


@given(ragged_items, st.integers(-100, 2**40))
def test_a_padded_tensor_with_lengths_is_the_ragged_list(items, padding):
    width = max(map(len, items)) + 1
    padded = torch.tensor([[*item, *([padding] * (width - len(item)))] for item in items])
    lengths = torch.tensor([len(item) for item in items])
    from_tensor = ItemTrie.from_sequences(padded, lengths=lengths, end_token=5)
    from_list = ItemTrie.from_sequences([list(item) for item in items], end_token=5)
    assert all(torch.equal(getattr(from_tensor, name), getattr(from_list, name)) for name in ARRAYS)


def test_items_that_share_a_sequence_share_a_leaf_in_item_order():
    trie = ItemTrie.from_sequences(torch.tensor([[7, 1], [3, 2], [7, 1], [3, 1], [7, 1]]))
    leaf = int(trie.leaf_of_item[0])
    assert trie.items_at(leaf).tolist() == [0, 2, 4]
    assert trie.items_at(leaf).dtype == torch.int64
    assert trie.items_at(0).tolist() == []
    assert trie.leaf_of_item.tolist() == [5, 4, 5, 3, 5]


def test_a_single_item_of_one_token_is_a_trie():
    trie = ItemTrie.from_sequences([[0]])
    assert (trie.num_items, trie.num_nodes, trie.max_depth, trie.max_children) == (1, 2, 1, 1)
    assert trie.level_offsets == (0, 1, 2)


def test_the_largest_int32_token_is_kept():
    largest = 2**31 - 1
    trie = ItemTrie.from_sequences([[largest, 0], [largest, largest]])
    assert trie.max_token == largest
    assert sequences_of(trie) == {0: (largest, 0), 1: (largest, largest)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"token_ids": []}, ValueError, "token_ids: expected at least one item"),
        ({"token_ids": torch.empty(0, 3, dtype=torch.int64)}, ValueError, "token_ids: expected at least one item"),
        ({"token_ids": [[1], []]}, ValueError, "token_ids: expected at least one token in every item, .* item 1"),
        ({"token_ids": [[1], []], "end_token": 2}, ValueError, "token_ids: .* none in item 1"),
        ({"token_ids": torch.empty(2, 0, dtype=torch.int64)}, ValueError, "token_ids: .* none in item 0"),
        ({"token_ids": [[1, 2], [3, -1]]}, ValueError, r"token_ids: .*got -1 in item 1 \[3, -1\]"),
        ({"token_ids": torch.tensor([[1, 2], [3, -100]])}, ValueError, r"token_ids: .*got -100 in item 1"),
        ({"token_ids": [[1], [2**31]]}, ValueError, r"token_ids: .*got 2147483648 in item 1"),
        ({"token_ids": [[1], [2**70]]}, TypeError, "token_ids"),
        ({"token_ids": [[1, 2], [1]]}, ValueError, r"token_ids: .*item 1 \[1\] and item 0 \[1, 2\].*end_token"),
        (
            {"token_ids": [[9], [1, 2], [1], [1, 3]], "end_token": 3},
            ValueError,
            r"token_ids: .*item 2 \[1, 3\] and item 3 \[1, 3, 3\].*end_token",
        ),
        ({"token_ids": torch.tensor([1, 2])}, ValueError, r"token_ids: expected shape \[items, L\], got \[2\]"),
        ({"token_ids": torch.tensor([[1.0]])}, TypeError, "token_ids: expected dtype int64, got float32"),
        ({"token_ids": [[1.5]]}, TypeError, "token_ids: expected int tokens, got float32"),
        ({"token_ids": [1, 2]}, TypeError, "token_ids: expected a list of lists of int tokens"),
        ({"token_ids": "ab"}, TypeError, "token_ids: .*got str"),
        ({"token_ids": [[1]], "end_token": -1}, ValueError, "end_token"),
        ({"token_ids": [[1]], "end_token": 2**31}, ValueError, "end_token"),
        ({"token_ids": [[1]], "end_token": 1.0}, TypeError, "end_token"),
        ({"token_ids": [[1]], "lengths": torch.tensor([1])}, TypeError, "lengths"),
        ({"token_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([3])}, ValueError, "lengths: .*got 3"),
        ({"token_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([-1])}, ValueError, "lengths: .*got -1"),
        ({"token_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([1, 2])}, ValueError, "lengths: .*shape"),
        ({"token_ids": torch.tensor([[1, 2]]), "lengths": torch.tensor([1.0])}, TypeError, "lengths: .*dtype"),
    ],
)
def test_bad_items_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        ItemTrie.from_sequences(arguments.pop("token_ids"), **arguments)


def test_a_node_outside_the_trie_has_no_items_to_ask_for():
    trie = ItemTrie.from_sequences([[1]])
    for node in (-1, 2):
        with pytest.raises(ValueError, match="node"):
            trie.items_at(node)
    with pytest.raises(TypeError, match="nodes"):
        trie.is_leaf(torch.tensor([0.0]))


def test_a_trie_is_frozen_and_short_to_print():
    trie = ItemTrie.from_sequences([[1, 2], [1, 3]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        trie.max_token = 0
    assert repr(trie) == "ItemTrie(num_items=2, num_nodes=4, max_depth=2, max_children=2, device='cpu')"


def test_to_moves_every_array():
    trie = ItemTrie.from_sequences([[1, 2], [1, 3]]).to("meta")
    assert trie.device.type == "meta"
    assert all(getattr(trie, name).device.type == "meta" for name in ARRAYS)
    assert trie.level_offsets == (0, 1, 2, 4)


def test_a_million_items_of_four_levels_take_at_most_twenty_bytes_a_node():
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 256, (1_000_000, 4), generator=generator)
    token_ids += torch.arange(4) * 256
    trie = ItemTrie.from_sequences(token_ids)
    size = sum(getattr(trie, name).nbytes for name in ARRAYS)
    assert size <= 20 * trie.num_nodes
    assert all(getattr(trie, name).dtype == torch.int32 for name in ARRAYS)
    # The node of every item leads back to its tokens, from the last level up.
    nodes = trie.leaf_of_item
    for level in reversed(range(4)):
        assert torch.equal(trie.edge_tokens[nodes - 1].long(), token_ids[:, level])
        nodes = torch.searchsorted(trie.child_offsets.long(), nodes - 1, right=True) - 1
    assert bool((nodes == 0).all())
    assert trie.num_nodes == 1 + sum(
        len(torch.unique((token_ids[:, :level] << (10 * torch.arange(level))).sum(1))) for level in range(1, 5)
    )


@settings(max_examples=20)
@given(ragged_items)
def test_a_saved_trie_loads_as_it_was(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie = ItemTrie.from_sequences([list(item) for item in items], end_token=5)
    trie.save(path)
    loaded = ItemTrie.load(str(path))
    assert all(torch.equal(getattr(trie, name), getattr(loaded, name)) for name in ARRAYS)
    assert loaded.level_offsets == trie.level_offsets
    assert (loaded.max_children, loaded.max_token) == (trie.max_children, trie.max_token)
    assert os.listdir(path.parent) == [path.name]


def test_saving_replaces_a_file_whole(tmp_path):
    path = tmp_path / "trie.safetensors"
    path.write_bytes(b"something else")
    ItemTrie.from_sequences([[1]]).save(path)
    assert ItemTrie.load(path).num_items == 1


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="folder"):
        ItemTrie.from_sequences([[1]]).save(path)
    assert os.listdir(tmp_path) == ["folder"]


def damaged(**changes):
    """A file whose arrays are those of a good trie, but for the given ones (None: left out)."""

    def write(path):
        trie = ItemTrie.from_sequences([[1, 2], [1, 3], [4, 0], [1, 2]])
        trie.save(path)
        arrays = {**load_file(path), **changes}
        save_file(
            {name: array for name, array in arrays.items() if array is not None},
            path,
            metadata={"format": "tawin_kernels.ItemTrie.1"},
        )

    return write


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


# The good arrays: child_offsets 0 2 4 5 5 5 5, edge_tokens 1 4 2 3 0, item_offsets 0 0 0 0 2 3 4, item_ids 0 3 1 2.
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"not safetensors"), "not a readable safetensors file"),
        (lambda path: path.write_bytes(b""), "not a readable safetensors file"),
        (lambda path: save_file({"weight": torch.zeros(2)}, path), "expected a file that ItemTrie.save wrote"),
        (damaged(item_ids=None), "expected a file that ItemTrie.save wrote"),
        (damaged(edge_tokens=torch.tensor([1, 4, 2, 3, 0])), "edge_tokens is torch.int64"),
        (damaged(edge_tokens=int32(1, 4, 2, 3)), "nodes do not go with"),
        (damaged(item_offsets=int32(0, 0, 0, 2, 3, 4)), "nodes do not go with"),
        (damaged(child_offsets=int32(0, 2, 1, 5, 5, 5, 5)), "child_offsets does not rise"),
        (damaged(child_offsets=int32(0, 2, 4, 4, 4, 4, 4)), "child_offsets does not rise"),
        (damaged(item_offsets=int32(0, 0, 0, 0, 2, 3, 5)), "item_offsets does not rise"),
        (damaged(child_offsets=int32(0, 0, 2, 5, 5, 5, 5)), "breadth first"),
        (damaged(item_offsets=int32(0, 0, 1, 1, 2, 3, 4)), "items do not end at the leaves"),
        (damaged(item_offsets=int32(0, 0, 0, 0, 3, 3, 4)), "items do not end at the leaves"),
        (damaged(edge_tokens=int32(1, 4, 3, 2, 0)), "ascend by token"),
        (damaged(edge_tokens=int32(1, 1, 2, 3, 0)), "ascend by token"),
        (damaged(edge_tokens=int32(1, 4, 2, 3, -1)), "ascend by token"),
        (damaged(item_ids=int32(3, 0, 1, 2)), "item_ids"),
        (damaged(item_ids=int32(0, 3, 1, 1)), "item_ids"),
        (damaged(item_ids=int32(0, 3, 1, 4)), "item_ids"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused(tmp_path, write, message):
    path = tmp_path / "trie.safetensors"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        ItemTrie.load(path)
    assert str(caught.value).startswith("path:")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "trie.safetensors"
    ItemTrie.from_sequences([[1, 2], [1, 3]]).save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"path: .*not a readable safetensors file"):
        ItemTrie.load(path)


def test_without_safetensors_save_and_load_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        ItemTrie.from_sequences([[1]]).save(tmp_path / "trie.safetensors")
    with pytest.raises(ImportError, match="pip install safetensors"):
        ItemTrie.load(tmp_path / "trie.safetensors")
