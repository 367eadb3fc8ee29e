"""The file of a trie: its four arrays in the safetensors format, written and read by hand.

A safetensors file is 8 bytes with the length of a header (little-endian), the header in JSON with a dtype, a shape and
a range of bytes for each array, then the arrays' bytes without gaps. The safetensors library reads the files that are
written here, and those that it wrote of the same arrays and metadata are read here. Arrays have the machine's byte
order, which is little-endian wherever Triton runs.

The module knows what makes four arrays a trie, not how they are built.
"""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

ARRAYS = ("child_offsets", "edge_tokens", "item_offsets", "item_ids")
_FORMAT = "tawin_kernels.ItemTrie.1"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the library safetensors
_INT32_BYTES = 4


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, torch.Tensor]) -> None:
    """Write the four int32 arrays; an existing file is replaced at once, never left half written."""
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT}}
    end = 0
    for name in ARRAYS:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": "I32", "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the arrays at 8 bytes
    temporary = f"{os.fsdecode(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for name in ARRAYS:
                buffer = bytearray(arrays[name].nbytes)
                torch.frombuffer(buffer, dtype=torch.int32).copy_(arrays[name])
                file.write(buffer)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_arrays(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The four arrays of a file that `write_arrays` wrote, int32 on the CPU and checked to be a trie.

    Their bytes are read once, into memory of their own: mapped memory would change, or end the process, when another
    program writes to the file. ValueError for a file that is damaged or no trie; OSError for one that cannot be read.
    """
    with open(path, "rb") as file:
        header, data_bytes = _read_header(file, path)
        arrays = {}
        for name, count in _counts_in_file_order(header, data_bytes, path).items():
            buffer = bytearray(count * _INT32_BYTES)
            if file.readinto(buffer) != len(buffer):
                raise _unreadable(path, f"it ends within {name}")
            arrays[name] = torch.frombuffer(buffer, dtype=torch.int32)
    damage = _damage(**arrays)
    if damage is not None:
        raise ValueError(f"path: {os.fsdecode(path)} holds a damaged trie: {damage}")
    return arrays


def _unreadable(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(f"path: {os.fsdecode(path)} is not a readable safetensors file: {reason}")


def _read_header(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
    """The entries of the four arrays, not yet checked, and how many bytes follow them."""
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
    if file_format != _FORMAT or sorted(header) != sorted(ARRAYS):
        raise ValueError(
            f"path: expected a file that ItemTrie.save wrote (format {_FORMAT!r}, tensors {', '.join(ARRAYS)}), got "
            f"format {reprlib.repr(file_format)}, tensors {reprlib.repr(sorted(header))} in {os.fsdecode(path)}"
        )
    return header, size - _LENGTH_BYTES - length


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
    """What keeps four int32 arrays of at least one value from being a trie, in words."""
    num_nodes = len(child_offsets) - 1
    if num_nodes < 2 or len(edge_tokens) != num_nodes - 1 or len(item_offsets) != num_nodes + 1:
        return f"{num_nodes} nodes do not go with {len(edge_tokens)} edges and {len(item_offsets)} item offsets"
    for name, offsets, end in (
        ("child_offsets", child_offsets, num_nodes - 1),
        ("item_offsets", item_offsets, len(item_ids)),
    ):
        # Neighbours are compared, not subtracted: a difference of two int32 may wrap around.
        if int(offsets[0]) != 0 or int(offsets[-1]) != end or bool((offsets[1:] < offsets[:-1]).any()):
            return f"{name} does not rise from 0 to {end}"
    children, items = child_offsets.diff(), item_offsets.diff()
    if bool((child_offsets[1:-1] < torch.arange(1, num_nodes, device=child_offsets.device)).any()):
        return "child_offsets do not number the nodes breadth first"  # every node but the root has an earlier parent
    if bool(((children > 0) == (items > 0)).any()):
        return "items do not end at the leaves, all of them and nothing else"
    if int(edge_tokens.min()) < 0 or not _ascends_within(edge_tokens, children):
        return "the children of a node do not ascend by token"
    every_item = torch.arange(len(item_ids), device=item_ids.device)
    if not bool((item_ids.sort().values == every_item).all()) or not _ascends_within(item_ids, items):
        return "item_ids is not every item once, ascending within a node"
    return None


def _ascends_within(values: torch.Tensor, counts: torch.Tensor) -> bool:
    """Whether the values ascend strictly within each of the consecutive groups of the given sizes."""
    groups = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return bool(((values.diff() > 0) | (groups.diff() > 0)).all())
