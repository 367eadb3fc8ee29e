"""The peak of memory of one training step, in a process of its own.

Run: python -m bench.step.memory CASE WAY [--device cpu|cuda] [--threads N]

What other ways leave behind, caches of an allocator and optimizer states, would count in a process that they share.
The step is run once, so that the optimizer has its state and libraries are loaded, then once more, measured. On CUDA
the bytes of tensors, on Linux's CPU the resident memory of the whole process, Python and its libraries included; the
system's counter of its peak is set back between the two steps. Prints {"before": bytes, "peak": bytes}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from ..measure import memory_bytes, reset_peak_bytes
from .cases import StepSetting, make_case, settings_for
from .ways import WAYS, way_of

ROOT = Path(__file__).parents[2]


class NotMeasured(Exception):
    """No figure here; the message says why."""


def memory_of_step(setting: StepSetting, way: str, device: torch.device) -> dict[str, int]:
    """Bytes before a step and at its peak, in this process."""
    case = make_case(setting, device)
    step = way_of(way, case).step
    step()
    case.restore()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return {"before": before, "peak": torch.cuda.max_memory_allocated()}
    try:
        before = reset_peak_bytes()
    except OSError as error:
        raise NotMeasured(f"the peak of resident memory cannot be set back ({error})") from error
    step()
    return {"before": before, "peak": memory_bytes("VmHWM")}


def memory_in_own_process(case: str, way: str, device: torch.device) -> dict[str, int]:
    """Of a case by name. NotMeasured with the end of what the process said where it fails."""
    command = [sys.executable, "-m", "bench.step.memory", case, way, "--device", str(device)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    if done.returncode != 0:
        raise NotMeasured((done.stderr or done.stdout).strip()[-500:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step.memory", description=__doc__.splitlines()[0])
    parser.add_argument("case")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    settings = settings_for(options.device)
    if options.case not in settings:
        parser.error(f"case: expected one of {', '.join(settings)}, got {options.case}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(json.dumps(memory_of_step(settings[options.case], options.way, options.device)))


if __name__ == "__main__":
    main()
