"""What fuzzing draws for ItemTrie: catalogues good and bad, and files that were damaged on the way.

The trie is compared with the sorted prefixes of its items, a list of tuples that shares no code with it.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tawin_kernels import ItemTrie

Items = list[list[int]]


def draw_items(random: np.random.Generator, *, most: int = 12, tokens: int = 5, longest: int = 4) -> Items:
    """Token lists of few tokens, so that items share sequences and prefixes; each of one length, or of any."""
    count = int(random.integers(1, most + 1))
    lengths = random.integers(1, longest + 1, count)
    if random.random() < 0.5:
        lengths[:] = lengths[0]
    high = int(random.choice([2, tokens, 1000]))
    return [random.integers(0, high, int(length)).tolist() for length in lengths]


def prefix_pair(items: Items) -> bool:
    """Whether an item is a proper prefix of another."""
    sequences = {tuple(item) for item in items}
    return any(item[:end] in sequences for item in sequences for end in range(1, len(item)))


def require_trie_of(trie: ItemTrie, items: Items) -> None:
    """Every node, edge, item and figure of the trie is that of these items; AssertionError otherwise."""
    sequences = [tuple(item) for item in items]
    prefixes = sorted(
        {sequence[:end] for sequence in sequences for end in range(len(sequence) + 1)}, key=lambda p: (len(p), p)
    )
    number = {prefix: node for node, prefix in enumerate(prefixes)}
    assert trie.num_nodes == len(prefixes) and trie.num_items == len(items)
    assert trie.max_depth == max(map(len, sequences)) and trie.max_token == max(map(max, sequences))
    assert trie.edge_tokens.tolist() == [prefix[-1] for prefix in prefixes[1:]]
    children = np.zeros(len(prefixes), dtype=np.int64)
    for prefix in prefixes[1:]:
        children[number[prefix[:-1]]] += 1
    assert trie.child_offsets.tolist() == [0, *np.cumsum(children).tolist()]
    assert trie.max_children == children.max()
    leaves = [number[sequence] for sequence in sequences]
    assert trie.leaf_of_item.tolist() == leaves
    assert trie.leaf_depths == tuple(sorted({len(sequence) for sequence in sequences}))
    assert trie.is_leaf(torch.arange(trie.num_nodes)).tolist() == [not count for count in children]
    for node in (0, *leaves[:3]):
        assert trie.items_at(node).tolist() == [item for item, leaf in enumerate(leaves) if leaf == node]
    asked = [(node, token) for node in (*leaves[:2], 0, len(prefixes) - 1, -1) for token in (0, 1, trie.max_token)]
    known = [number.get((*prefixes[node], token), -1) if node >= 0 else -1 for node, token in asked]
    nodes, tokens = torch.tensor(asked).T
    assert trie.child(nodes.contiguous(), tokens.contiguous()).tolist() == known


def trie_case() -> Callable[[np.random.Generator], str]:
    """from_sequences of lists and of tensors, with and without an end token, and of what it has to refuse."""

    def case(random: np.random.Generator) -> str:
        items = draw_items(random)
        end_token = int(random.integers(0, 1200)) if random.random() < 0.4 else None
        spoiled = random.random() < 0.2 and spoil(items, random)
        given = items if end_token is None else [[*item, end_token] for item in items]
        must_refuse = spoiled or prefix_pair(given)
        arguments: dict[str, Any] = {"end_token": end_token}
        argument: Any = items
        if random.random() < 0.5 and all(isinstance(token, int) for item in items for token in item):
            width = max(map(len, items), default=0) + int(random.integers(0, 2))
            lengths = torch.tensor([len(item) for item in items])
            padded = torch.full((len(items), width), -7)
            for row, item in enumerate(items):
                padded[row, : len(item)] = torch.tensor(item, dtype=torch.int64)
            argument, arguments["lengths"] = padded, lengths
        try:
            trie = ItemTrie.from_sequences(argument, **arguments)
        except (ValueError, TypeError) as error:
            assert must_refuse, f"refused {items}, end token {end_token}: {error}"
            assert str(error).startswith(("token_ids: expected", "end_token: expected", "lengths: expected")), error
            return "refused"
        assert not must_refuse, f"took {items}, end token {end_token}"
        require_trie_of(trie, given)
        return "passed"

    return case


def spoil(items: Items, random: np.random.Generator) -> bool:
    """Make the items a catalogue that is to be refused."""
    row = int(random.integers(0, len(items)))
    kind = random.integers(0, 5)
    if kind == 0:
        items[row] = []
    elif kind == 1:
        items[row][0] = -int(random.integers(1, 2**40))
    elif kind == 2:
        items[row][0] = int(random.integers(2**31, 2**62))
    elif kind == 3:
        items[row][-1] = 0.5  # type: ignore[call-overload]
    else:
        items.clear()
    return True


def trie_file_case() -> Callable[[np.random.Generator], str]:
    """Files of a trie that are cut off, hit by flipped bits, or have another header or other arrays."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-trie-")
    path = Path(folder.name) / "trie.safetensors"

    def case(random: np.random.Generator) -> str:
        items = draw_items(random)
        if prefix_pair(items):
            items = [[*item, 1001] for item in items]
        ItemTrie.from_sequences(items).save(path)
        content = path.read_bytes()
        damage = DAMAGE[int(random.integers(0, len(DAMAGE)))]
        damaged = damage(content, random)
        path.write_bytes(damaged)
        memory_map = bool(random.random() < 0.5)
        try:
            trie = ItemTrie.load(path, memory_map=memory_map)
        except ValueError as error:
            assert str(error).startswith("path:") and str(path) in str(error), error
            return "refused"
        if damage is other_arrays:
            # Arrays without a checksum that are a trie by all checks: it has to be one.
            require_trie_of(trie, sequences_of(trie))
        else:
            require_trie_of(trie, items)
        return "passed"

    case.folder = folder  # type: ignore[attr-defined]  # lives as long as the case
    return case


def sequences_of(trie: ItemTrie) -> Items:
    """Read back by walking up from each item's leaf, edges looked up by bisection in the plain lists."""
    offsets, tokens = trie.child_offsets.tolist(), trie.edge_tokens.tolist()
    starts = trie.item_offsets.tolist()
    items: Items = [[] for _ in range(trie.num_items)]
    for node in range(trie.num_nodes):
        sequence, at = [], node
        while at > 0:
            edge = at - 1
            sequence.append(tokens[edge])
            parent = bisect_left(offsets, edge + 1) - 1
            assert 0 <= parent < at
            at = parent
        for item in trie.item_ids[starts[node] : starts[node + 1]].tolist():
            items[item] = sequence[::-1]
    return items


def cut_off(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def flip_bits(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in random.integers(0, len(content), int(random.integers(1, 5))):
        changed[place] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def overwrite(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, len(content)))
    piece = random.bytes(int(random.integers(1, 40)))
    return content[:start] + piece + content[start + len(piece) :]


def insert_or_remove(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(0, len(content)))
    if random.random() < 0.5:
        return content[:start] + random.bytes(int(random.integers(1, 9))) + content[start:]
    return content[:start] + content[start + int(random.integers(1, 9)) :]


def noise(_: bytes, random: np.random.Generator) -> bytes:
    return random.bytes(int(random.integers(0, 300)))


def other_header(content: bytes, random: np.random.Generator) -> bytes:
    """A header that is JSON, but says something else: dtypes, shapes, ranges, names, duplicate keys, huge numbers."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    name = str(random.choice([name for name in header if name != "__metadata__"]))
    entry = header[name]
    kind = random.integers(0, 9)
    if kind == 0:
        entry["dtype"] = str(random.choice(["I64", "F32", "U8", "BOOL", "i32", ""]))
    elif kind == 1:
        entry["shape"] = [entry["shape"][0] + int(random.integers(-3, 4))]
    elif kind == 2:
        begin, stop = entry["data_offsets"]
        entry["data_offsets"] = [begin + int(random.integers(-9, 9)), stop + int(random.integers(-9, 9))]
    elif kind == 3:
        entry["data_offsets"] = [int(random.integers(-(2**62), 2**62)), int(random.integers(-(2**62), 2**62))]
    elif kind == 4:
        entry["shape"] = [int(random.integers(0, 2**62))] * int(random.integers(0, 4))
    elif kind == 5:
        header[f"{name}_"] = header.pop(name)
    elif kind == 6:
        header["__metadata__"] = [None, {}, {"format": "pt"}, 3, {"format": "tawin_kernels.ItemTrie.1", "crc32": 5}][
            int(random.integers(0, 5))
        ]
    elif kind == 7:
        header[name] = [None, [], 7, {}, {"dtype": "I32"}, float("nan")][int(random.integers(0, 6))]
    text = json.dumps(header)
    if kind == 8:  # the same key twice
        text = text[:-1] + f', "{name}": {json.dumps({**entry, "shape": [1]})}}}'
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw + content[end:]


def other_arrays(content: bytes, random: np.random.Generator) -> bytes:
    """Some values changed and the checksum gone, so that the checks of the arrays themselves have to tell."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    del header["__metadata__"]["crc32"]
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    values = np.frombuffer(content[end:], dtype=np.int32).copy()
    for place in random.integers(0, len(values), int(random.integers(1, 4))):
        kind = random.integers(0, 4)
        values[place] = [
            values[place] + random.integers(-2, 3),
            random.integers(0, 12),
            random.integers(-(2**31), 2**31),
            values[random.integers(0, len(values))],
        ][kind]
    return len(raw).to_bytes(8, "little") + raw + values.tobytes()


DAMAGE = (cut_off, flip_bits, overwrite, insert_or_remove, noise, other_header, other_arrays)
