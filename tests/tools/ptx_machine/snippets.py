"""Small pieces of PTX, run: each thread computes one value from its own element of each input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from tools.ptx_machine.compile import Argument, Compiled
from tools.ptx_machine.core.programs import Observer
from tools.ptx_machine.launch import execute


def run_ptx(
    body: str,
    arrays: dict[str, np.ndarray],
    *,
    warps: int = 1,
    programs: int = 1,
    shared: int = 0,
    observer: Observer | None = None,
) -> None:
    """A kernel whose parameters are the arrays' addresses, %rd_NAME each; `body` declares its own registers.

    There are %tid (b32, the thread) and %rdtid (b64) too. Results are left in the arrays.
    """
    parameters = ",\n".join(f"  .param .u64 .ptr .global .align 1 {name}" for name in arrays)
    loads = "\n".join(f"  .reg .b64 %rd_{name};\n  ld.param.b64 %rd_{name}, [{name}];" for name in arrays)
    ptx = f"""
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet(
{parameters}
)
{{
  .reg .b32 %tid;
  .reg .b64 %rdtid;
{loads}
  mov.u32 %tid, %tid.x;
  cvt.u64.u32 %rdtid, %tid;
{body}
  ret;
}}
"""
    tensors = {name: torch.from_numpy(array.view(f"i{array.itemsize}")) for name, array in arrays.items()}
    arguments = [Argument(name, "*i8", tensor) for name, tensor in tensors.items()]
    execute(Compiled(ptx, warps, shared, 0), arguments, (programs,), observer or Observer())


def computed(text: str, *inputs: Any, result: Any) -> np.ndarray:
    """What `text` makes of inputs: "{0}" is its result, "{1}" the first input and so on; %p0 and %p1 are predicates.

    Inputs are arrays of one element a thread, up to 32, of the dtype whose bits the instruction reads; `result` is the
    dtype of what comes back. Without semicolon, `text` is an opcode and the operands follow in order.
    """
    given = [np.atleast_1d(np.asarray(value)) for value in inputs]
    count = max([1, *map(len, given)])
    arrays = {f"in{i}": _padded(value, count) for i, value in enumerate(given, 1)}
    arrays["out"] = np.zeros(32, result)
    names = {f"{i}": f"%in{i}" for i in range(1, len(given) + 1)} | {"0": "%result"}
    if ";" not in text:
        text = f"{text} " + ", ".join(f"{{{i}}}" for i in range(len(given) + 1)) + ";"
    statement = re.sub(r"\{(\d)\}", lambda place: names[place[1]], text)
    lines = ["  .reg .pred %p0, %p1;", f"  .reg .b{8 * arrays['out'].itemsize} %result;", "  .reg .b64 %at;"]
    for name, array in list(arrays.items())[:-1]:
        size = array.itemsize
        lines += [f"  .reg .b{8 * size} %{name};", f"  mad.lo.s64 %at, %rdtid, {size}, %rd_{name};"]
        lines += [f"  ld.global.b{8 * size} %{name}, [%at];"]
    size = arrays["out"].itemsize
    lines += [f"  {statement}", f"  mad.lo.s64 %at, %rdtid, {size}, %rd_out;"]
    lines += [f"  st.global.b{8 * size} [%at], %result;"]
    run_ptx("\n".join(lines), arrays)
    return arrays["out"][:count]


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """One element for each thread of a warp; a single one for all of them."""
    values = np.broadcast_to(values, (count,)) if len(values) == 1 else values
    return np.concatenate([values, np.repeat(values[-1:], 32 - count)]).copy()


def bits_of_bf16(values: Any) -> np.ndarray:
    """By PyTorch."""
    return torch.as_tensor(np.asarray(values, np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)
