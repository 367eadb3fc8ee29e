"""Attention of one layer at one decode step, on a GPU: the 4-D mask against the split, and what the rule picks.

Run: python -m bench.bench_decode_attention [--dtype bfloat16|float16|float32] [--rounds N]

Each shape is checked first: both ways must give the same. Then each is captured REPEATS times in a CUDA graph, as beam
search runs it, and the two take turns. Printed: microseconds of one layer by the median round, the bytes that each way
is said to move (`DecodeShape.moved_bytes`), what that makes in GB/s, and the way that `decode_attention` picks, marked
where it is not the faster one. From that `MIN_SAVED_BYTES` is to be set. Keys that fit the L2 cache stay there from one
repeat to the next, which in a model they do not. Without a GPU there is nothing to measure: the check runs on small
shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AttentionInterface

from tawin.model.attention.decode import DecodeAttention, DecodeShape, SharedPrompt, decode_attention, split_attention

REPEATS = 20
# heads, kv_heads, head_dim
MODELS = {
    "Qwen2.5-0.5B": (14, 2, 64),
    "Qwen3-1.7B": (16, 8, 128),
    "Llama-3.2-1B": (32, 8, 64),
    "no groups": (16, 16, 64),
}
# prompts, beams, prompt keys
BATCHES = [(1, 16, 256), (16, 16, 256), (64, 16, 64), (64, 16, 256), (64, 50, 256), (256, 16, 256), (16, 256, 1024)]
LEVELS = 3  # of beams appended so far, the widest step of four tokens


class Layer(torch.nn.Module):
    """What transformers' sdpa function wants to know of an attention layer."""

    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def ways(
    shape: DecodeShape, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> dict[DecodeAttention, Callable[[], Tensor]]:
    """Both ways of one layer on random keys, ragged prompts and beams with one ancestor a level."""
    draw = torch.Generator().manual_seed(seed)
    keys = shape.prompt_keys + shape.suffix_keys

    def normal(heads: int, length: int) -> Tensor:
        return torch.randn(shape.batch, heads, length, shape.head_dim, generator=draw).to(device, dtype)

    query, key, value = (
        normal(shape.heads, shape.beam_width),
        normal(shape.kv_heads, keys),
        normal(shape.kv_heads, keys),
    )
    lengths = torch.randint(1, shape.prompt_keys + 1, (shape.batch, 1, 1), generator=draw)
    levels = shape.suffix_keys // shape.beam_width
    ancestors = torch.randint(shape.beam_width, (shape.batch, shape.beam_width, levels), generator=draw)
    mask = torch.zeros(shape.batch, shape.beam_width, keys, dtype=torch.bool)
    mask[..., : shape.prompt_keys] = torch.arange(shape.prompt_keys) >= shape.prompt_keys - lengths
    mask.scatter_(2, shape.prompt_keys + ancestors + shape.beam_width * torch.arange(levels), True)
    step = SharedPrompt(mask[:, None].to(device), shape.prompt_keys, True, None)
    layer, sdpa = Layer(shape.heads // shape.kv_heads), AttentionInterface()["sdpa"]
    scaling = shape.head_dim**-0.5
    return {
        "mask": lambda: sdpa(layer, query, key, value, step.mask, scaling=scaling)[0],
        "split": lambda: split_attention(query, key, value, step, scaling),
    }


def check(shape: DecodeShape, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference of the two ways; AssertionError where it is more than the dtype explains."""
    both = ways(shape, device, dtype)
    gap = (both["mask"]().float() - both["split"]().float()).abs().max().item()
    # Outputs are means of values around 1. 16 bits: three roundings of 2^-8 or 2^-11; fp32 may run as tf32 on a GPU.
    allowed = {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(dtype, 5e-3 if device.type == "cuda" else 1e-5)
    assert gap <= allowed, f"{shape}: the two ways differ by {gap:.2g}, allowed {allowed:g}"
    return gap


def captured(work: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """REPEATS calls in one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            work()
    return graph


def microseconds(shape: DecodeShape, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Median time of one call of each way."""
    graphs = {way: captured(work) for way, work in ways(shape, device, dtype).items()}
    times: dict[str, list[float]] = {way: [] for way in graphs}
    for _ in range(rounds):
        for way, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[way].append(1e3 * start.elapsed_time(end) / REPEATS)
    return {way: statistics.median(taken) for way, taken in times.items()}


def shapes(itemsize: int) -> list[tuple[str, DecodeShape]]:
    return [
        (name, DecodeShape(batch, width, heads, kv_heads, prompt, LEVELS * width, head_dim, itemsize))
        for name, (heads, kv_heads, head_dim) in MODELS.items()
        for batch, width, prompt in BATCHES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bench_decode_attention", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        gaps = []
        for _, shape in shapes(4):
            small = dataclasses.replace(shape, batch=2, beam_width=4, prompt_keys=24, suffix_keys=4 * LEVELS)
            gaps.append(check(small, torch.device("cpu"), torch.float32))
        print(f"no GPU: not measured; on {len(gaps)} small shapes both ways are the same within {max(gaps):.1e}")
        return
    device, dtype = torch.device("cuda"), getattr(torch, options.dtype)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {options.dtype}")
    print(
        f"{'model':<14}{'B':>4}{'W':>5}{'P':>6}{'mask us':>10}{'split us':>10}{'mask GB/s':>11}{'split GB/s':>11}  rule"
    )
    for name, shape in shapes(dtype.itemsize):
        check(shape, device, dtype)
        taken = microseconds(shape, device, dtype, options.rounds)
        picked = decode_attention(device, shape)
        rates = [shape.moved_bytes(way) / taken[way] / 1e3 for way in ("mask", "split")]
        wrong = "" if taken[picked] <= 1.05 * min(taken.values()) else " (the slower one)"
        print(
            f"{name:<14}{shape.batch:>4}{shape.beam_width:>5}{shape.prompt_keys:>6}{taken['mask']:>10.1f}"
            f"{taken['split']:>10.1f}{rates[0]:>11.0f}{rates[1]:>11.0f}  {picked}{wrong}"
        )


if __name__ == "__main__":
    main()
