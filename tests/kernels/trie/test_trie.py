"""ItemTrie: construction, numbering and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import ItemTrie

from ..brute_force import prefixes_breadth_first

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
    assert trie.leaf_depths == tuple(sorted(set(map(len, closed))))
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
    assert trie.leaf_depths == (2,)  # without reading a tensor: a meta tensor has no values


def test_to_the_device_where_it_is_gives_the_trie_itself_with_what_it_has_made_so_far():
    trie = ItemTrie.from_sequences([[1, 2], [1, 3]])
    assert trie.to("cpu") is trie
    assert trie.to(torch.device("cpu")) is trie


def test_the_leaf_of_every_item_is_found_once_and_serves_training_whoever_asked_first():
    trie = ItemTrie.from_sequences([[1, 2], [3]])
    with torch.inference_mode():
        leaves = trie.leaf_of_item
    assert trie.leaf_of_item is leaves
    embeddings = torch.zeros(4, requires_grad=True)
    embeddings[leaves].sum().backward()  # an index of inference mode could not be saved for the backward pass
    assert embeddings.grad.tolist() == [0.0, 0.0, 1.0, 1.0]


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


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-1, 40), st.integers(-100, 12)), max_size=20),
)
def test_the_child_by_a_token_is_found_wherever_there_is_one(items, questions):
    trie = ItemTrie.from_sequences(items, end_token=10)
    questions = [(node, token) for node, token in questions if node < trie.num_nodes]
    nodes, tokens = (torch.tensor([q[i] for q in questions], dtype=torch.int64) for i in range(2))
    children = {
        (node, int(trie.edge_tokens[edge])): edge + 1
        for node in range(trie.num_nodes)
        for edge in range(int(trie.child_offsets[node]), int(trie.child_offsets[node + 1]))
    }
    assert trie.child(nodes, tokens).tolist() == [children.get(question, -1) for question in questions]


def test_what_follows_is_known_of_each_depth():
    trie = ItemTrie.from_sequences([[2, 9], [2, 4], [2, 7], [7, 7], [4, 2]])
    assert [below.tokens.tolist() for below in trie.levels] == [[2, 4, 7], [2, 4, 7, 9]]
    assert trie.levels[0].slots.tolist() == [-1, -1, 0, -1, 1, -1, -1, 2, -1, -1]
    assert [tuple(below[2:]) for below in trie.levels] == [(3, 1, 3), (3, 3, 5)]
    assert trie.levels is trie.levels
    assert trie.below(0) is trie.levels[0]
    assert trie.below(None).tokens is trie.used_tokens
    assert trie.below(None)[2:] == (3, 9, 8)


def test_used_tokens_and_their_slots_are_made_once():
    trie = ItemTrie.from_sequences([[9, 2], [4, 2], [4, 7]])
    trie.prepare()
    assert trie.used_tokens.tolist() == [2, 4, 7, 9]
    assert trie.token_slots.tolist() == [-1, -1, 0, -1, 1, -1, -1, 2, -1, 3]
    assert trie.used_tokens.dtype == trie.token_slots.dtype == torch.int32
    assert trie.token_slots is trie.token_slots


@given(ragged_items)
def test_chains_end_at_the_first_node_without_a_single_child(items: list[tuple[int, ...]]) -> None:
    trie = ItemTrie.from_sequences([list(item) for item in items], end_token=5)
    prefixes, longest = prefixes_breadth_first([(*item, 5) for item in items]), 0
    children = trie.child_offsets.diff().tolist()
    assert trie.depth_of(torch.arange(trie.num_nodes)).tolist() == [len(prefix) for prefix in prefixes]
    for node in range(trie.num_nodes):
        end = node
        while children[end] == 1:
            end = int(trie.child_offsets[end]) + 1
        assert int(trie.chain_ends[node]) == end
        assert bool(trie.has_choice(torch.tensor(node))) == (children[node] > 1)
        longest = max(longest, len(prefixes[end]) - len(prefixes[node]))
    assert trie.longest_chain == longest
