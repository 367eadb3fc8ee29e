"""One kernel of the package compiled, packed, unpacked for another build of Triton, and looked up by its JIT.

`python -m tests.tools.gpu.packed_kernel FOLDER` prints what it saw as JSON. A process of its own, as Triton compiles
nothing after its interpreter was used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from tawin_kernels import group_advantages
from tawin_kernels.launch import recorded_launches
from triton import knobs
from triton.runtime import cache, driver

from tools.compiled.code import job_of
from tools.gpu import packed, prewarm


class Hopper:
    """As much of a driver as the JIT asks before it launches."""

    utils = SimpleNamespace()

    def get_current_target(self) -> Any:
        return prewarm._GPU

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(folder: Path) -> None:
    with recorded_launches(prewarm._TARGET) as launches:
        group_advantages(torch.empty(4, 16, device="meta"))
    (launch,) = launches
    job = job_of(launch, prewarm._TARGET)
    knobs.cache.dir = str(folder / "made")
    with prewarm.keeping_keys():
        made = triton.compile(job.source, target=prewarm._GPU, options=job.options)
    kernels, helpers = packed.pack(folder / "made", folder / "kernels.tar.xz", prewarm._GPU.arch)

    # Another build of the same release: its files hash to something else.
    for module in (packed, cache):
        module.triton_key = lambda: "of another Python"
    knobs.cache.dir = str(folder / "here")
    unpacked = packed.unpack(folder / "kernels.tar.xz", folder / "here")
    hits = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    driver.set_active(Hopper())
    found = launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments, **launch.options(on_nvidia=True))

    version, triton.__version__ = triton.__version__, "3.5.0"
    other = packed.unpack(folder / "kernels.tar.xz", folder / "nowhere")
    triton.__version__ = version
    print(
        json.dumps(
            {
                "packed": [kernels, helpers],
                "unpacked": [unpacked.kernels, unpacked.reason],
                "hits": hits,
                "same": made.asm["cubin"] == found.asm["cubin"],
                "hash": found.hash == found.metadata.hash != made.hash,
                "other release": [other.kernels, other.reason],
                "nowhere": (folder / "nowhere").exists(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
