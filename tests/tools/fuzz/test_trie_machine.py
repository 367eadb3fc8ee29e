"""ItemTrie under any order of adding, building, saving, loading and walking, against sets of tuples."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tawin_kernels import ItemTrie

items = st.lists(st.integers(0, 3), min_size=1, max_size=4)
END = 4


class TrieMachine(RuleBasedStateMachine):
    """The model: the items in order, and for each node that a walk has come to, the prefix that leads there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="trie-machine-")
        self.path = Path(self.folder.name) / "trie.safetensors"
        self.saved: list[tuple[int, ...]] | None = None

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(first=items)
    def build_first(self, first: list[int]) -> None:
        self.items = [(*first, END)]
        self.build()

    @rule(more=st.lists(items, min_size=1, max_size=3))
    def add(self, more: list[list[int]]) -> None:
        self.items = [*self.items, *((*item, END) for item in more)]
        self.build()

    def build(self) -> None:
        self.trie = ItemTrie.from_sequences([list(item[:-1]) for item in self.items], end_token=END)
        self.node, self.prefix = 0, ()

    @rule()
    def save(self) -> None:
        self.trie.save(self.path)
        self.saved = self.items

    @precondition(lambda self: self.saved is not None)
    @rule(memory_map=st.booleans())
    def load(self, memory_map: bool) -> None:
        self.trie = ItemTrie.load(self.path, memory_map=memory_map)
        assert self.saved is not None
        self.items = self.saved
        self.node, self.prefix = 0, ()

    @rule()
    def move(self) -> None:
        self.trie = self.trie.to("cpu")

    @rule(token=st.integers(0, END + 1))
    def step(self, token: int) -> None:
        child = int(self.trie.child(torch.tensor([self.node]), torch.tensor([token])))
        below = (*self.prefix, token)
        exists = any(item[: len(below)] == below for item in self.items)
        assert (child >= 0) == exists
        if exists:
            self.node, self.prefix = child, below

    @rule()
    def back_to_the_root(self) -> None:
        self.node, self.prefix = 0, ()

    @invariant()
    def the_node_is_that_of_its_prefix(self) -> None:
        children = sorted({item[len(self.prefix)] for item in self.below() if len(item) > len(self.prefix)})
        rows, edges = self.trie.edges_below(torch.tensor([self.node]))
        assert self.trie.edge_tokens[edges].tolist() == children and rows.tolist() == [0] * len(children)
        assert bool(self.trie.is_leaf(torch.tensor([self.node]))) == (not children)
        ends_here = [row for row, item in enumerate(self.items) if item == self.prefix]
        assert self.trie.items_at(self.node).tolist() == ends_here

    @invariant()
    def it_holds_the_items_and_nothing_else(self) -> None:
        prefixes = {item[:end] for item in self.items for end in range(len(item) + 1)}
        assert (self.trie.num_items, self.trie.num_nodes) == (len(self.items), len(prefixes))
        assert self.trie.max_depth == max(map(len, self.items))

    def below(self) -> list[tuple[int, ...]]:
        return [item for item in self.items if item[: len(self.prefix)] == self.prefix]


TestTrieMachine = TrieMachine.TestCase
TestTrieMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
