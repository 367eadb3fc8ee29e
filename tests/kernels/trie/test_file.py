"""The file of a trie: it comes back as it was, the safetensors library and it read each other, damage is named."""

from __future__ import annotations

import gc
import json
import os
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tawin_kernels import ItemTrie, beam_step
from tawin_kernels.trie import file as trie_file

ragged_items = st.lists(
    st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=20
)  # few tokens, so that items share sequences and prefixes
ARRAYS = ("child_offsets", "edge_tokens", "item_offsets", "item_ids")
METADATA = {"format": "tawin_kernels.ItemTrie.1"}


def some_trie() -> ItemTrie:
    return ItemTrie.from_sequences([[1, 2], [1, 3], [4, 0], [1, 2]])


def same(trie: ItemTrie, other: ItemTrie) -> bool:
    return all(torch.equal(getattr(trie, name), getattr(other, name)) for name in ARRAYS)


@settings(max_examples=20)
@given(ragged_items)
def test_a_saved_trie_loads_as_it_was(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie = ItemTrie.from_sequences(items, end_token=5)
    trie.save(path)
    loaded = ItemTrie.load(str(path))
    assert same(loaded, trie)
    assert (loaded.level_offsets, loaded.leaf_depths) == (trie.level_offsets, trie.leaf_depths)
    assert (loaded.max_children, loaded.max_token) == (trie.max_children, trie.max_token)
    assert os.listdir(path.parent) == [path.name]


@settings(max_examples=20)
@given(ragged_items)
def test_a_mapped_trie_is_the_one_that_is_loaded(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    ItemTrie.from_sequences(items, end_token=5).save(path)
    loaded, mapped = ItemTrie.load(path), ItemTrie.load(str(path), memory_map=True)
    assert same(mapped, loaded)
    assert (mapped.level_offsets, mapped.leaf_depths) == (loaded.level_offsets, loaded.leaf_depths)
    assert (mapped.max_children, mapped.max_token) == (loaded.max_children, loaded.max_token)
    assert torch.equal(mapped.leaf_of_item, loaded.leaf_of_item)


@settings(max_examples=20)
@given(ragged_items)
def test_the_safetensors_library_reads_what_save_wrote(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie = ItemTrie.from_sequences(items, end_token=5)
    trie.save(path)
    arrays = load_file(path)
    assert set(arrays) == set(ARRAYS)
    for name in ARRAYS:
        assert arrays[name].dtype == torch.int32
        assert torch.equal(arrays[name], getattr(trie, name))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    bytes_of_arrays = b"".join(getattr(trie, name).numpy().tobytes() for name in ARRAYS)
    assert metadata == {**METADATA, "crc32": f"{zlib.crc32(bytes_of_arrays):08x}"}


@settings(max_examples=20)
@given(ragged_items, st.integers(1, 5))
def test_a_trie_that_is_looked_at_in_small_pieces_is_the_same(tmp_path_factory, items, chunk):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie = ItemTrie.from_sequences(items, end_token=5)
    trie.save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_file, "_CHUNK", chunk)
        loaded = ItemTrie.load(path, memory_map=True)
    assert same(loaded, trie)
    assert (loaded.leaf_depths, loaded.max_children) == (trie.leaf_depths, trie.max_children)


@settings(max_examples=20)
@given(ragged_items)
def test_what_the_safetensors_library_wrote_is_loaded(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie = ItemTrie.from_sequences(items, end_token=5)
    save_file({name: getattr(trie, name) for name in ARRAYS}, path, metadata=METADATA)
    assert same(ItemTrie.load(path), trie)


def test_a_loaded_trie_does_not_change_with_its_file(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    loaded = ItemTrie.load(path)
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place, where mapped memory would follow
    assert same(loaded, some_trie())
    ItemTrie.from_sequences([[7]]).save(path)
    assert same(loaded, some_trie())


def test_a_loaded_trie_holds_its_arrays_and_nothing_more(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    loaded = ItemTrie.load(path)
    storages = {getattr(loaded, name).untyped_storage().data_ptr() for name in ARRAYS}
    assert len(storages) == len(ARRAYS)
    assert all(getattr(loaded, name).untyped_storage().nbytes() == getattr(loaded, name).nbytes for name in ARRAYS)


def mapped_bytes(path) -> int:
    """Addresses of this process that are pages of the file."""
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(path))]
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)


def test_a_mapped_trie_is_pages_of_its_file_as_long_as_it_lives(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    loaded, mapped = ItemTrie.load(path), ItemTrie.load(path, memory_map=True)
    assert mapped_bytes(path) >= path.stat().st_size
    tokens = mapped.edge_tokens
    del mapped
    assert mapped_bytes(path) > 0 and torch.equal(tokens, loaded.edge_tokens)
    del tokens
    gc.collect()
    assert mapped_bytes(path) == 0


def test_what_is_written_to_a_mapped_trie_does_not_reach_its_file(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    path.chmod(0o400)
    content = path.read_bytes()
    mapped = ItemTrie.load(path, memory_map=True)
    mapped.edge_tokens.fill_(9)
    assert path.read_bytes() == content
    assert same(ItemTrie.load(path, memory_map=True), some_trie())


def test_a_mapped_trie_stays_when_another_is_saved_in_its_place(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    mapped = ItemTrie.load(path, memory_map=True)
    ItemTrie.from_sequences([[7]]).save(path)
    assert same(mapped, some_trie())


def test_a_beam_step_runs_on_a_mapped_trie(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    draw = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 1, 8, generator=draw), torch.randn(6, 8, generator=draw)
    inputs = (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    steps = [beam_step(hidden, head, trie, *inputs, 3) for trie in (some_trie(), ItemTrie.load(path, memory_map=True))]
    for ours, theirs in zip(*steps, strict=True):
        assert torch.equal(ours, theirs)


def test_arrays_that_are_not_aligned_are_loaded_but_not_mapped(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes((end - 7).to_bytes(8, "little") + content[8:end] + b" " + content[end:])
    assert same(ItemTrie.load(path), some_trie())
    with pytest.raises(ValueError, match=rf"its arrays begin at byte {end + 1}, expected a multiple of 4 to map it"):
        ItemTrie.load(path, memory_map=True)


def test_saving_replaces_a_file_whole(tmp_path):
    path = tmp_path / "trie.safetensors"
    path.write_bytes(b"something else" * 1000)
    some_trie().save(path)
    assert same(ItemTrie.load(os.fsencode(path)), some_trie())
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match="folder"):
        some_trie().save(path)
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError):
        some_trie().save(tmp_path / "no folder" / "trie.safetensors")


def test_a_file_that_is_not_there_is_no_damaged_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ItemTrie.load(tmp_path / "trie.safetensors")


def damaged_arrays(**changes):
    """A file that the library wrote of a good trie's arrays, but for the given ones (None: left out)."""

    def write(path):
        arrays = {name: getattr(some_trie(), name) for name in ARRAYS} | changes
        save_file({name: array for name, array in arrays.items() if array is not None}, path, metadata=METADATA)

    return write


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


# The good arrays: child_offsets 0 2 4 5 5 5 5, edge_tokens 1 4 2 3 0, item_offsets 0 0 0 0 2 3 4, item_ids 0 3 1 2.
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: save_file({"weight": torch.zeros(2)}, path),
            r"ItemTrie.save wrote .*data None.*\['weight'\]",
        ),
        (damaged_arrays(item_ids=None), "expected a file that ItemTrie.save wrote"),
        (damaged_arrays(weight=torch.zeros(2)), "expected a file that ItemTrie.save wrote"),
        (
            damaged_arrays(edge_tokens=torch.tensor([1, 4, 2, 3, 0])),
            "edge_tokens is described as .*I64.*expected dtype",
        ),
        (damaged_arrays(edge_tokens=torch.zeros(5)), "edge_tokens is described as .*F32.*expected dtype I32"),
        (
            damaged_arrays(edge_tokens=int32(1, 4, 2, 3, 0)[None]),
            "edge_tokens is described as .*a shape of one dimension",
        ),
        (damaged_arrays(item_ids=int32()), "item_ids is described as"),
        (damaged_arrays(edge_tokens=int32(1, 4, 2, 3)), "nodes do not go with"),
        (damaged_arrays(item_offsets=int32(0, 0, 0, 2, 3, 4)), "nodes do not go with"),
        (damaged_arrays(child_offsets=int32(0, 2, 1, 5, 5, 5, 5)), "child_offsets does not rise"),
        (damaged_arrays(child_offsets=int32(0, 2, 4, 4, 4, 4, 4)), "child_offsets does not rise"),
        (damaged_arrays(item_offsets=int32(0, 0, 0, 0, 2, 3, 5)), "item_offsets does not rise"),
        # All differences are positive in int32, which wraps around.
        (damaged_arrays(item_offsets=int32(0, 0, 0, 2**31 - 1, -2, 3, 4)), "item_offsets does not rise"),
        (damaged_arrays(child_offsets=int32(0, 0, 2, 5, 5, 5, 5)), "breadth first"),
        (damaged_arrays(item_offsets=int32(0, 0, 1, 1, 2, 3, 4)), "items do not end at the leaves"),
        (damaged_arrays(item_offsets=int32(0, 0, 0, 0, 3, 3, 4)), "items do not end at the leaves"),
        (damaged_arrays(edge_tokens=int32(1, 4, 3, 2, 0)), "ascend by token"),
        (damaged_arrays(edge_tokens=int32(1, 1, 2, 3, 0)), "ascend by token"),
        (damaged_arrays(edge_tokens=int32(1, 4, 2, 3, -1)), "ascend by token"),
        (damaged_arrays(item_ids=int32(3, 0, 1, 2)), "item_ids"),
        (damaged_arrays(item_ids=int32(0, 3, 1, 1)), "item_ids"),
        (damaged_arrays(item_ids=int32(0, 3, 1, 4)), "item_ids"),
    ],
)
@pytest.mark.parametrize(("memory_map", "chunk"), [(False, 2**18), (True, 2**18), (False, 1), (True, 2), (False, 3)])
def test_foreign_or_damaged_arrays_are_refused(tmp_path, monkeypatch, write, message, memory_map, chunk):
    path = tmp_path / "trie.safetensors"
    write(path)
    monkeypatch.setattr(trie_file, "_CHUNK", chunk)
    with pytest.raises(ValueError, match=message) as caught:
        ItemTrie.load(path, memory_map=memory_map)
    assert str(caught.value).startswith("path:")
    assert str(path) in str(caught.value)


def with_header(change):
    """Bytes of a good file -> those with another header: `change` takes the header's dict and returns what to write."""

    def write(content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        text = json.dumps(change(json.loads(content[8:end]))).encode()
        return len(text).to_bytes(8, "little") + text + content[end:]

    return write


def moved(name: str, begin: int, end: int):
    return with_header(lambda header: {**header, name: {**header[name], "data_offsets": [begin, end]}})


# The good ranges of bytes: child_offsets 0 28, edge_tokens 28 48, item_offsets 48 76, item_ids 76 92.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "it has 0 bytes, expected at least 8"),
        (lambda content: b"not safetensors", "its header would have .* bytes, the file has 15"),
        (lambda content: b"\xff" * 8 + content[8:], "its header would have 18446744073709551615 bytes"),
        (lambda content: content[:8] + b"x" + content[9:], "its header is not JSON"),
        (lambda content: content[:8] + b"\xff" + content[9:], "its header is not JSON"),
        (lambda content: (100_000).to_bytes(8, "little") + b"[" * 100_000, "its header is not JSON"),
        (lambda content: bytes(8) + content[8:], "its header is not JSON"),
        (with_header(lambda header: [1, 2]), r"its header is \[1, 2\], expected a JSON object"),
        (with_header(lambda header: {**header, "__metadata__": {"format": "pt"}}), "got metadata {'format': 'pt'}"),
        (with_header(lambda header: {**header, "__metadata__": "tawin"}), "got metadata 'tawin'"),
        (
            with_header(lambda header: {**header, "__metadata__": {**METADATA, "crd32": "00000000"}}),
            "got metadata {'crd32': '00000000', 'format': ",
        ),
        (with_header(lambda header: {**header, "edge_tokens": 5}), "edge_tokens is described as 5"),
        (with_header(lambda header: {**header, "edge_tokens": {"dtype": "I32"}}), "edge_tokens is described as"),
        (with_header(lambda header: {**header, "item_ids": {**header["item_ids"], "shape": [5]}}), "item_ids is descr"),
        (
            with_header(lambda header: {**header, "item_ids": {**header["item_ids"], "shape": [4.0]}}),
            "item_ids is descr",
        ),
        (moved("edge_tokens", 28, 52), "edge_tokens is described as .*data_offsets of as many bytes"),
        (moved("edge_tokens", 24, 44), "edge_tokens begins at byte 24, expected 28: arrays overlap or leave a gap"),
        (moved("edge_tokens", 32, 52), "edge_tokens begins at byte 32, expected 28"),
        (moved("child_offsets", -28, 0), "child_offsets begins at byte -28, expected 0"),
        (moved("item_ids", 80, 96), "item_ids begins at byte 80, expected 76"),
        (moved("item_ids", 10**30, 10**30 + 16), "item_ids begins at byte 10+, expected 76"),
        (lambda content: content + b"\0", "it has 93 bytes for its arrays, expected 92"),
    ],
)
def test_a_file_in_another_shape_is_refused(tmp_path, change, message):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        ItemTrie.load(path)
    assert str(caught.value).startswith("path:")
    assert str(path) in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        for memory_map in (False, True):
            with pytest.raises(ValueError, match=r"path: .* is not a readable safetensors file"):
                ItemTrie.load(path, memory_map=memory_map)


@pytest.mark.parametrize("change", [1, 64, 255])
def test_a_file_with_one_byte_changed_anywhere_is_refused_or_the_very_same_trie(tmp_path, change):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    content = path.read_bytes()
    refused = 0
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ change]) + content[index + 1 :])
        try:
            trie = ItemTrie.load(path)
        except ValueError as error:
            assert str(error).startswith("path:"), error
            refused += 1
        else:
            assert same(trie, some_trie())  # a blank of the header was hit
    assert len(content) - refused < 10


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("chunk", [1, 2**18])
def test_another_good_trie_in_place_of_the_saved_one_is_told_by_the_checksum(tmp_path, monkeypatch, memory_map, chunk):
    path = tmp_path / "trie.safetensors"
    some_trie().save(path)
    content = path.read_bytes()
    before = torch.tensor([1, 4, 2, 3, 0], dtype=torch.int32).numpy().tobytes()  # edge_tokens
    after = torch.tensor([1, 5, 2, 3, 0], dtype=torch.int32).numpy().tobytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    monkeypatch.setattr(trie_file, "_CHUNK", chunk)
    with pytest.raises(ValueError, match=r"holds a damaged trie: the CRC-32 of its arrays is [0-9a-f]{8}, expected '"):
        ItemTrie.load(path, memory_map=memory_map)
