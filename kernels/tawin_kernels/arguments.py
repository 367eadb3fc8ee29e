"""Argument checks that all ops share, and the one place that says which implementations there are.

A check raises TypeError (wrong kind or dtype) or ValueError (wrong shape, device or value); the message names the
argument, what was expected and what came. Nothing here knows an op's mathematics.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch._subclasses import FakeTensor
from triton import knobs

from .autograd import is_batched
from .launch import INTERPRETED, is_recording

Impl = Literal["auto", "triton", "reference"]

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INT64 = (torch.int64,)
BOOL = (torch.bool,)

IGNORED_TOKEN = -100


def runs_triton(op: str, impl: str, tensor: torch.Tensor, *, multiplies: bool = False) -> bool:
    """Whether an op runs as Triton kernels, by its first tensor; an explicit choice that cannot run raises.

    "auto": on CUDA tensors, on CPU tensors with TRITON_INTERPRET=1 (through Triton's interpreter), and on any while
    launches are recorded. fp64, which the kernels do not take, goes to the reference op. multiplies: the op has matrix
    products; the interpreter makes those of the bits of bf16 operands, so bf16 on the CPU goes there too.
    """
    require_choice("impl", impl, get_args(Impl))
    if impl == "reference" or not isinstance(tensor, torch.Tensor):
        return False  # what is no tensor is refused by the op's own checks
    on_cpu = tensor.device.type == "cpu"
    is_garbled = on_cpu and INTERPRETED and multiplies and tensor.dtype == torch.bfloat16
    if impl == "auto":
        is_interpreted = on_cpu and INTERPRETED and knobs.runtime.interpret
        is_there = tensor.device.type == "cuda" or is_interpreted or is_recording()
        return is_there and tensor.dtype != torch.float64 and not is_garbled
    if tensor.dtype == torch.float64:
        raise TypeError(f"impl: {op} in Triton takes float32, bfloat16 or float16, got float64; use impl='reference'")
    if is_garbled:
        raise TypeError(
            f"impl: {op} through Triton's interpreter takes float32 or float16, got bfloat16, whose bits it would "
            "multiply; use impl='reference', or a GPU"
        )
    if tensor.device.type != "cuda" and not (on_cpu and INTERPRETED):
        raise RuntimeError(
            f"impl: {op} in Triton runs on CUDA tensors, got one on {tensor.device}; use impl='auto', or set "
            "TRITON_INTERPRET=1 before tawin_kernels is imported to run it through Triton's interpreter"
        )
    return True


def require_reference(op: str, impl: str) -> None:
    """A reference op runs as itself only."""
    require_choice("impl", impl, get_args(Impl))
    if impl == "triton":
        raise ValueError(
            f"impl: expected 'auto' or 'reference', got 'triton': reference.{op} is the reference op; "
            f"tawin_kernels.{op} chooses between implementations"
        )


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def require_number(name: str, value: object, *, minimum: float | None = None, above: float | None = None) -> None:
    """A finite Python number, at least `minimum` or strictly above `above`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r} of type {type(value).__name__}")
    expected = "a finite number" if minimum is None else f"a finite number >= {minimum:g}"
    expected = expected if above is None else f"a finite number > {above:g}"
    if not math.isfinite(value) or (minimum is not None and value < minimum) or (above is not None and value <= above):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def require_int(name: str, value: object, *, minimum: int, maximum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        expected = f">= {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
        raise ValueError(f"{name}: expected an int {expected}, got {value!r}")


def require_tensor(
    name: str,
    value: object,
    *,
    dims: str,
    sizes: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device_of: tuple[str, torch.Tensor] | None = None,
) -> None:
    """A tensor of the given sizes (None: any), one of `dtypes`, on the device of another argument.

    dims: how the documentation writes the shape, such as "[B, G, L]".
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor {dims}, got {type(value).__name__}")
    _require_plain(name, value, dims)
    if value.dtype not in dtypes:
        expected = " or ".join(_dtype_name(dtype) for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {expected}, got {_dtype_name(value.dtype)}")
    fits = value.dim() == len(sizes) and all(
        size is None or size == got for size, got in zip(sizes, value.shape, strict=True)
    )
    if not fits:
        known = f" = [{', '.join('any' if size is None else str(size) for size in sizes)}]"
        known = "" if all(size is None for size in sizes) else known
        cure = ""
        if value.shape == (0,):  # a trained one may lie on other ranks
            cure = f"; DeepSpeed's ZeRO-3 leaves parameters empty: deepspeed.zero.GatheredParameters([{name}]) fills it"
        raise ValueError(f"{name}: expected shape {dims}{known}, got {list(value.shape)}{cure}")
    if device_of is not None and value.device != device_of[1].device:
        other, tensor = device_of
        raise ValueError(f"{name}: expected device {tensor.device} as {other}, got {value.device}")


def _require_plain(name: str, tensor: torch.Tensor, dims: str) -> None:
    """A tensor with its elements in memory of its own: kernels read nothing else, and reference ops would mix kinds."""
    kind = type(tensor)
    # A parameter of a DTensor is a DTensor; a subclass of Parameter that only adds attributes is none.
    is_plain = kind is torch.Tensor or (
        torch.nn.Parameter in kind.__mro__ and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    )
    if not is_plain:
        cure = "convert it to a plain torch.Tensor"
        if hasattr(tensor, "full_tensor"):
            cure = f"pass {name}.full_tensor()"
        elif isinstance(tensor, FakeTensor):
            cure = "ops cannot be exported or traced"
        raise TypeError(f"{name}: expected a plain tensor {dims}, got a {kind.__name__}; {cure}")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor {dims}, got layout {layout}; pass {name}.to_dense()")
    if is_batched(tensor):
        raise TypeError(
            f"{name}: expected a tensor outside of torch.vmap, got a batched one; call the op on the whole batch"
        )


def require_same_dtype(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected the dtype of {other_name}, {_dtype_name(other.dtype)}, got {_dtype_name(tensor.dtype)}; "
            "cast one of them"
        )


def values_are_checked(check_values: object, tensor: torch.Tensor) -> bool:
    """On the CPU always; elsewhere, where it synchronises the device, only when asked for."""
    if check_values is not None and not isinstance(check_values, bool):
        raise TypeError(f"check_values: expected None, True or False, got {check_values!r}")
    return tensor.device.type == "cpu" or check_values is True


def require_values(name: str, is_good: torch.Tensor, tensor: torch.Tensor, expected: str) -> None:
    """Every element of `is_good` (the shape of `tensor`) is true; the message shows the first element that is not."""
    if bool(is_good.all()):
        return
    index = tuple(int(i) for i in (~is_good).nonzero()[0])
    raise ValueError(f"{name}: expected {expected}, got {tensor[index].item()} at index {list(index)}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
