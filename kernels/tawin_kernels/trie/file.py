"""The file of a trie: its four arrays in the safetensors format, written and read by hand.

A safetensors file is 8 bytes with the length of a header (little-endian), the header in JSON with a dtype, a shape and
a range of bytes for each array, then the arrays' bytes without gaps. The safetensors library reads the files that are
written here, and those that it wrote of the same arrays and metadata are read here. Arrays have the machine's byte
order, which is little-endian wherever Triton runs.

The metadata holds a CRC-32 of the arrays' bytes: a bit that has flipped may make another good trie, of other items,
which no check of the arrays can tell. It is against damage, not against people. A file without it, as the library may
have written, is checked as a trie alone.

The module knows what makes four arrays a trie, not how they are built.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import reprlib
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any, BinaryIO

import torch

ARRAYS = ("child_offsets", "edge_tokens", "item_offsets", "item_ids")
_FORMAT = "tawin_kernels.ItemTrie.1"
_CHECKSUM = "crc32"  # eight hexadecimal digits
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the library safetensors
_INT32_BYTES = 4
_CHUNK = 2**18  # nodes or items that are looked at together


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, torch.Tensor]) -> None:
    """Write the four int32 arrays; an existing file is replaced at once, never left half written."""
    temporary = f"{os.fsdecode(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(_header(arrays, 0))
            checksum = 0
            for name in ARRAYS:
                buffer = bytearray(arrays[name].nbytes)
                torch.frombuffer(buffer, dtype=torch.int32).copy_(arrays[name])
                checksum = zlib.crc32(buffer, checksum)
                file.write(buffer)
            file.seek(0)
            file.write(_header(arrays, checksum))  # as long as the first
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _header(arrays: Mapping[str, torch.Tensor], checksum: int) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, _CHECKSUM: f"{checksum:08x}"}}
    end = 0
    for name in ARRAYS:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": "I32", "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the arrays at 8 bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def read_arrays(path: str | os.PathLike[str], *, memory_map: bool = False) -> dict[str, torch.Tensor]:
    """The four arrays of a file that `write_arrays` wrote, int32 on the CPU and checked to be a trie.

    Their bytes are read once, into memory of their own, or with memory_map are those of the file: the checks read all
    of them a piece at a time, and the system may drop them and read them again. The mapping is private, so nothing
    that is written to the arrays reaches the file; but mapped memory changes, or ends the process, when another program
    writes into the file or cuts it off. `write_arrays` replaces files and does neither.

    ValueError for a file that is damaged or no trie, or one that cannot be mapped because its arrays do not begin at a
    multiple of 4 bytes (those written here do); OSError for one that cannot be read.
    """
    with open(path, "rb") as file:
        header, expected, data_bytes = _read_header(file, path)
        counts = _counts_in_file_order(header, data_bytes, path)
        arrays, found = _map(file, counts, path) if memory_map else _read(file, counts, path)
    damage = _damage(**arrays)
    if expected not in (None, f"{found:08x}"):
        damage = f"the CRC-32 of its arrays is {found:08x}, expected {expected!r}"
    if damage is not None:
        raise ValueError(f"path: {os.fsdecode(path)} holds a damaged trie: {damage}")
    return arrays


def _read(
    file: BufferedReader, counts: dict[str, int], path: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], int]:
    """The arrays, and the CRC-32 of their bytes."""
    arrays, checksum = {}, 0
    for name, count in counts.items():
        buffer = bytearray(count * _INT32_BYTES)
        if file.readinto(buffer) != len(buffer):
            raise _unreadable(path, f"it ends within {name}")
        checksum = zlib.crc32(buffer, checksum)
        arrays[name] = torch.frombuffer(buffer, dtype=torch.int32)
    return arrays, checksum


def _map(
    file: BufferedReader, counts: dict[str, int], path: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], int]:
    """The arrays, and the CRC-32 of their bytes."""
    position = file.tell()
    if position % _INT32_BYTES:
        raise _unreadable(path, f"its arrays begin at byte {position}, expected a multiple of {_INT32_BYTES} to map it")
    # Of the open file, not of the path: what is mapped is what the header was read from. The tensors keep it mapped.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with memoryview(mapped) as view:
        checksum = zlib.crc32(view[position:])
    arrays = {}
    for name, count in counts.items():
        arrays[name] = torch.frombuffer(mapped, dtype=torch.int32, count=count, offset=position)
        position += count * _INT32_BYTES
    return arrays, checksum


def _unreadable(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(f"path: {os.fsdecode(path)} is not a readable safetensors file: {reason}")


def _read_header(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[dict[str, Any], Any, int]:
    """The entries of the four arrays and the checksum, not yet checked, and how many bytes follow them."""
    size = os.fstat(file.fileno()).st_size
    if size < _LENGTH_BYTES:
        raise _unreadable(path, f"it has {size} bytes, expected at least {_LENGTH_BYTES}")
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise _unreadable(path, f"its header would have {length} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _unreadable(path, f"its header is {reprlib.repr(header)}, expected a JSON object")
    metadata = header.pop("__metadata__", None)
    file_format = metadata.get("format") if isinstance(metadata, dict) else None
    # Nothing else is metadata: the checksum's name may be what was damaged.
    is_known = isinstance(metadata, dict) and metadata.keys() <= {"format", _CHECKSUM}
    if file_format != _FORMAT or not is_known or sorted(header) != sorted(ARRAYS):
        raise ValueError(
            f"path: expected a file that ItemTrie.save wrote (format {_FORMAT!r}, tensors {', '.join(ARRAYS)}), got "
            f"metadata {reprlib.repr(metadata)}, tensors {reprlib.repr(sorted(header))} in {os.fsdecode(path)}"
        )
    return header, metadata.get(_CHECKSUM), size - _LENGTH_BYTES - length


def _counts_in_file_order(header: dict[str, Any], data_bytes: int, path: str | os.PathLike[str]) -> dict[str, int]:
    """Array -> how many values it has, in the order in which the arrays stand in the file, one after another."""
    ranges = []
    for name, entry in header.items():
        match entry:
            case {"dtype": "I32", "shape": [int(count)], "data_offsets": [int(begin), int(end)]} if (
                count > 0 and end - begin == count * _INT32_BYTES
            ):
                ranges.append((begin, end, count, name))
            case _:
                expected = "dtype I32, a shape of one dimension and data_offsets of as many bytes"
                raise _unreadable(path, f"{name} is described as {reprlib.repr(entry)}, expected {expected}")
    position = 0
    for begin, end, _, name in sorted(ranges):
        if begin != position:
            raise _unreadable(
                path, f"{name} begins at byte {begin}, expected {position}: arrays overlap or leave a gap"
            )
        position = end
    if position != data_bytes:
        raise _unreadable(path, f"it has {data_bytes} bytes for its arrays, expected {position}")
    return {name: count for _, _, count, name in sorted(ranges)}


def _damage(
    child_offsets: torch.Tensor, edge_tokens: torch.Tensor, item_offsets: torch.Tensor, item_ids: torch.Tensor
) -> str | None:
    """What keeps four int32 arrays of at least one value from being a trie, in words.

    Besides a chunk and its edges, one byte an item is held.
    """
    num_nodes = len(child_offsets) - 1
    if num_nodes < 2 or len(edge_tokens) != num_nodes - 1 or len(item_offsets) != num_nodes + 1:
        return f"{num_nodes} nodes do not go with {len(edge_tokens)} edges and {len(item_offsets)} item offsets"
    for name, offsets, end in (
        ("child_offsets", child_offsets, num_nodes - 1),
        ("item_offsets", item_offsets, len(item_ids)),
    ):
        # Neighbours are compared, not subtracted: a difference of two int32 may wrap around.
        rises = all(bool((part[1:] >= part[:-1]).all()) for _, part in chunks(offsets))
        if int(offsets[0]) != 0 or int(offsets[-1]) != end or not rises:
            return f"{name} does not rise from 0 to {end}"
    for first, part in chunks(child_offsets):
        begin = max(1, first)  # every node but the root has an earlier parent
        if bool((part[begin - first : -1] < torch.arange(begin, first + len(part) - 1)).any()):
            return "child_offsets do not number the nodes breadth first"
    for (_, children), (_, items) in zip(chunks(child_offsets), chunks(item_offsets), strict=True):
        if bool(((children.diff() > 0) == (items.diff() > 0)).any()):
            return "items do not end at the leaves, all of them and nothing else"
    if int(edge_tokens.min()) < 0 or not _ascends_within(edge_tokens, child_offsets):
        return "the children of a node do not ascend by token"
    if not _is_permutation(item_ids) or not _ascends_within(item_ids, item_offsets):
        return "item_ids is not every item once, ascending within a node"
    return None


def chunks(offsets: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The offsets of _CHUNK nodes after another, with the one that ends them, and the first of these nodes."""
    for first in range(0, len(offsets) - 1, _CHUNK):
        yield first, offsets[first : first + _CHUNK + 1]


def _ascends_within(values: torch.Tensor, offsets: torch.Tensor) -> bool:
    """Whether the values ascend strictly within each of the groups that begin and end at the (rising) offsets."""
    for _, part in chunks(offsets):
        first, end = int(part[0]), int(part[-1])
        group = values[first:end]
        begins = torch.zeros(end - first + 1, dtype=torch.bool)
        begins[(part - first).long()] = True
        if not bool(((group[1:] > group[:-1]) | begins[1:-1]).all()):
            return False
    return True


def _is_permutation(values: torch.Tensor) -> bool:
    """Whether the values are 0, 1, ... in any order."""
    if int(values.min()) < 0 or int(values.max()) >= len(values):
        return False
    seen = torch.zeros(len(values), dtype=torch.bool)
    for part in values.split(_CHUNK):
        seen[part.long()] = True
    return bool(seen.all())
