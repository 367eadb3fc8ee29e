"""The tables of docs/PERFORMANCE.md: every figure a prediction of `model` and `seconds`.

Run: python -m tools.cost.tables [--only NAME] [--write docs/PERFORMANCE.md]

--write puts each table between the lines `<!-- table NAME -->` and `<!-- end -->` of a file, and leaves all else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tawin.run.phases import PHASES

from .model import (
    QWEN2_5,
    TRAINING,
    WAYS,
    ModelShape,
    StepShape,
    Way,
    causal_pairs,
    decoder,
    needed_flops,
    step_flops,
    step_work,
)
from .seconds import (
    H200,
    Cluster,
    Strategy,
    cluster_seconds,
    expected_maximum,
    seconds_of,
    step_memory,
    step_seconds,
    traffic_efficiency,
)

SMALL = QWEN2_5["Qwen2.5-0.5B"]
# The GPU settings of `step.cases`: 39 items of four tokens behind an instruction of 100, a fifth of the groups live.
IDS = StepShape(common_tokens=100, live_share=0.2)
CASES = {
    "ids": IDS,
    "ids, no instruction": replace(IDS, common_tokens=0),
    "ids, all live": replace(IDS, live_share=1.0),
    "ids, beta > 0": replace(IDS, has_reference=True, shares_prefill=True),
    # Every title counts with the longest one's 24 tokens; how much of them a group's beams share is a guess.
    "titles": replace(IDS, length=24, prefix_share=0.5),
    "titles, beta > 0": replace(IDS, length=24, prefix_share=0.5, has_reference=True, shares_prefill=True),
}
NAMES: dict[Way, str] = {"rere": "rere", "shared_prefix": "shared prefix", "tawin": "tawin"}


def figure(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    return figure(1e3 * seconds)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def total(model: ModelShape, step: StepShape, way: Way = "tawin") -> float:
    return sum(step_seconds(model, step, way=way).values())


def phases() -> str:
    """The base step by phase, Qwen2.5-0.5B."""
    header = ["phase"]
    for way in reversed(WAYS):
        header += [f"{NAMES[way]}, TFLOP", "ms"]
    header += ["needed, TFLOP"]
    flops = {way: step_flops(SMALL, IDS, way) for way in WAYS}
    seconds = {way: step_seconds(SMALL, IDS, way=way) for way in WAYS}
    needed = needed_flops(SMALL, IDS)
    for of in (*flops.values(), *seconds.values(), needed):
        of["all"] = sum(of.values())
    rows = []
    for phase in (*PHASES, "all"):
        if all(seconds[way][phase] == 0 for way in WAYS):
            continue
        row = [phase]
        for way in reversed(WAYS):
            row += [figure(flops[way][phase] / 1e12), milliseconds(seconds[way][phase])]
        rows.append([*row, figure(needed[phase] / 1e12)])
    return table(header, rows)


def steps() -> str:
    """Whole steps on one GPU."""
    header = ["model", "step", *(f"{NAMES[way]}, ms" for way in reversed(WAYS)), "rere / tawin", "shared / tawin"]
    header += ["utilisation of training"]
    rows = []
    for name, model in QWEN2_5.items():
        for case, step in CASES.items():
            seconds = {way: total(model, step, way) for way in WAYS}
            needed, ours = needed_flops(model, step), step_seconds(model, step)
            used = sum(needed[phase] for phase in TRAINING) / sum(ours[phase] for phase in TRAINING)
            rows.append(
                [
                    name,
                    case,
                    *(milliseconds(seconds[way]) for way in reversed(WAYS)),
                    f"{seconds['rere'] / seconds['tawin']:.1f}",
                    f"{seconds['shared_prefix'] / seconds['tawin']:.1f}",
                    f"{used / H200.peak_flops_per_second:.0%}",
                ]
            )
    return table(header, rows)


def efficiency() -> str:
    """The share of the matrix rate that memory traffic between products leaves."""
    rows = []
    for name, model in QWEN2_5.items():
        eager, fused = (traffic_efficiency(model, is_fused=is_fused) for is_fused in (False, True))
        peak = H200.flops_per_second / H200.peak_flops_per_second
        rows.append([name, f"{eager:.2f}", f"{eager * peak:.0%}", f"{fused:.2f}", f"{fused * peak:.0%}"])
    return table(["model", "eager, of 790 TFLOP/s", "of peak", "fused, of 790 TFLOP/s", "of peak"], rows)


def assumptions() -> str:
    """How far the ratios hang on the constants, Qwen2.5-0.5B."""
    machines = {
        "as above": H200,
        "efficiency 0.3": replace(H200, efficiency=0.3),
        "efficiency 0.8": replace(H200, efficiency=0.8),
        "a launch from Python 5 us": replace(H200, python_seconds=5e-6),
        "a launch from Python 30 us": replace(H200, python_seconds=30e-6),
        "a launch on the device 1 us": replace(H200, launch_seconds=1e-6),
        "a beam in Python 0 us": replace(H200, beam_seconds=0.0),
        "a beam in Python 100 us": replace(H200, beam_seconds=100e-6),
    }
    rows = []
    for name, machine in machines.items():
        row = [name]
        for case in ("ids", "ids, beta > 0"):
            seconds = {way: sum(step_seconds(SMALL, CASES[case], machine, way).values()) for way in WAYS}
            row.append(milliseconds(seconds["tawin"]))
            row += [f"{seconds[way] / seconds['tawin']:.1f}" for way in ("rere", "shared_prefix")]
        rows.append(row)
    header = ["assumed", "ids, tawin, ms", "rere / tawin", "shared / tawin"]
    return table([*header, "beta > 0, tawin, ms", *header[2:]], rows)


def levers() -> str:
    """The base step without one lever at a time, Qwen2.5-0.5B."""
    base = total(SMALL, IDS)
    all_live, kl = CASES["ids, all live"], CASES["ids, beta > 0"]
    own, peer = step_work(SMALL, IDS, "tawin"), step_work(SMALL, IDS, "rere")
    shorter = replace(IDS, prompt_tokens=192)
    padded = replace(shorter, prompt_tokens=256)
    own_tokens = IDS.prompt_tokens - IDS.common_tokens - 1
    unwanted = 2 * SMALL.mlp_parameters * ((IDS.prompts + 3 * IDS.trained) * own_tokens + 4 * IDS.common_tokens)
    tokens = IDS.group_size * IDS.length
    head_rows = IDS.trained * (tokens - 1 - IDS.suffix) * 8 * SMALL.head_parameters
    rate = H200.flops_per_second * H200.efficiency

    def changed(phase: str, work: float) -> float:
        return base - seconds_of(own[phase], H200) + work

    found = [
        ("prompts run once in the rollout", base, changed("prefill", seconds_of(peer["prefill"], H200))),
        ("an instruction run once for all prompts", base, total(SMALL, CASES["ids, no instruction"])),
        ("dead groups skipped", base, total(SMALL, all_live)),
        ("token tree", base, total(SMALL, replace(IDS, prefix_share=1.0))),
        ("the same, all groups live", total(SMALL, all_live), total(SMALL, replace(all_live, prefix_share=1.0))),
        ("no padding (prompts of 192 padded to 256)", total(SMALL, shorter), total(SMALL, padded)),
        ("last layer's MLP only where wanted", base, base + unwanted / rate),
        ("LM head once a distinct state", base, base + head_rows / rate),
        ("normaliser over the trie", total(SMALL, replace(IDS, normalizer="trie")), base),
        (
            "decode as a CUDA graph",
            base,
            changed("decode", seconds_of(replace(own["decode"], launched_by="python"), H200)),
        ),
        (
            "prefill shared with the policy (beta > 0)",
            total(SMALL, kl),
            total(SMALL, replace(kl, shares_prefill=False)),
        ),
    ]
    rows = [[name, milliseconds(taken), milliseconds(left), f"{left / taken:.2f}"] for name, taken, left in found]
    return table(["lever", "with, ms", "without, ms", "ratio"], rows)


def memory() -> str:
    """At the peak of a step, one micro-batch."""
    header = ["model", "weights and optimizer, GB"]
    header += [f"activations and logits, {NAMES[way]}, GB" for way in reversed(WAYS)]
    header += ["tawin, all live, GB", "tawin fits 141 GB"]
    rows = []
    for name, model in QWEN2_5.items():
        of = {way: step_memory(model, IDS, way) for way in WAYS}
        live = step_memory(model, CASES["ids, all live"])
        row = [name, figure(of["tawin"]["weights"] / 1e9)]
        row += [figure((of[way]["activations"] + of[way]["logits"]) / 1e9) for way in reversed(WAYS)]
        fits = sum(of["tawin"].values()) <= H200.memory
        fits_all = sum(live.values()) <= H200.memory
        row += [figure(live["activations"] / 1e9), "yes, all live too" if fits_all else "yes" if fits else "no"]
        rows.append(row)
    return table(header, rows)


def scale() -> str:
    """Our base step on many GPUs, 64 prompts each."""
    header = ["model", "GPUs", "engine", "one GPU, ms", "step, ms", "waiting, ms", "communication, ms", "efficiency"]
    header += ["the same, live groups balanced", "beta > 0"]
    rows = []
    for name, model in QWEN2_5.items():
        strategy: Strategy = "fsdp2" if name.endswith("7B") else "ddp"
        for gpus in (8, 64):
            cluster = Cluster(gpus)
            alone = total(model, IDS)
            seconds = cluster_seconds(model, IDS, cluster, strategy)
            balanced = sum(cluster_seconds(model, IDS, cluster, strategy, is_balanced=True).values())
            kl = CASES["ids, beta > 0"]
            with_kl = sum(cluster_seconds(model, kl, cluster, strategy).values())
            rows.append(
                [
                    name,
                    str(gpus),
                    strategy,
                    *map(milliseconds, (alone, sum(seconds.values()), seconds["waiting"], seconds["communication"])),
                    f"{alone / sum(seconds.values()):.0%}",
                    f"{alone / balanced:.0%}",
                    f"{total(model, kl) / with_kl:.0%}",
                ]
            )
    return table(header, rows)


def imbalance() -> str:
    """Live groups of the rank with the most over the average, 64 prompts a rank."""
    shares = (0.03, 0.15, 0.3, 0.5)
    rows = []
    for ranks in (2, 8, 64):
        row = [str(ranks)]
        for share in shares:
            most, mean = expected_maximum(IDS.prompts, share, ranks), share * IDS.prompts
            row.append(f"{most:.1f} / {mean:.1f} = {most / mean:.2f}")
        rows.append(row)
    return table(["ranks", *(f"live share {share}" for share in shares)], rows)


def _sweep(
    name: str, values: Sequence[float | int], change: Callable[[float | int], tuple[ModelShape, StepShape]]
) -> str:
    rows = []
    for value in values:
        model, step = change(value)
        seconds = {way: total(model, step, way) for way in WAYS}
        flops = sum(step_flops(model, step, "tawin").values())
        ratio = (seconds[way] / seconds["tawin"] for way in ("rere", "shared_prefix"))
        row = [f"{value:,}", figure(flops / 1e12), *(milliseconds(seconds[way]) for way in reversed(WAYS))]
        rows.append([*row, *(f"{one:.1f}" for one in ratio)])
    header = [name, "tawin, TFLOP", *(f"{NAMES[way]}, ms" for way in reversed(WAYS)), "rere / tawin", "shared / tawin"]
    return table(header, rows)


def prompt_length() -> str:
    return _sweep(
        "prompt tokens P",
        (64, 128, 256, 512, 1024, 2048),
        lambda value: (SMALL, replace(IDS, prompt_tokens=value, common_tokens=0)),
    )


def group_size() -> str:
    return _sweep("completions G", (4, 8, 16, 32, 64), lambda value: (SMALL, replace(IDS, group_size=int(value))))


def length() -> str:
    return _sweep("completion tokens L", (3, 4, 8, 16, 24), lambda value: (SMALL, replace(IDS, length=int(value))))


def live_share() -> str:
    return _sweep("live share", (0.0, 0.03, 0.15, 0.3, 0.5, 1.0), lambda value: (SMALL, replace(IDS, live_share=value)))


def vocabulary() -> str:
    return _sweep(
        "vocabulary V", (2048, 32_000, 151_936, 262_144), lambda value: (replace(SMALL, vocabulary=int(value)), IDS)
    )


def catalogue() -> str:
    """Levels, codes and what can be told apart by them."""
    rows = []
    for levels, codes in ((3, 256), (4, 64), (4, 256), (4, 1024), (3, 4096), (8, 256)):
        of_trie = replace(IDS, length=levels, trie_tokens=levels * codes)
        trie = replace(of_trie, normalizer="trie")
        heads = [
            2 * SMALL.hidden_size * columns * IDS.prompts * (1 + IDS.group_size * (levels - 1))
            for columns in (SMALL.vocabulary + levels * codes, levels * codes)
        ]
        rows.append(
            [
                f"{levels} x {codes:,}",
                f"{codes**levels:.1e}",
                f"{levels * codes:,}",
                *(f"{head / 1e12:.3f}" for head in heads),
                milliseconds(total(SMALL, of_trie)),
                milliseconds(total(SMALL, trie)),
            ]
        )
    header = ["levels x codes", "items, at most", "tokens of the trie U", "decode's head, vocabulary, TFLOP"]
    return table([*header, "trie, TFLOP", "step, vocabulary, ms", "step, trie, ms"], rows)


def attention() -> str:
    """The share of attention in the blocks of a prompt and its suffix."""
    lengths = (128, 256, 512, 1024, 2048, 4096)
    rows = []
    for name, model in QWEN2_5.items():
        for mask in ("dense mask", "hidden pairs skipped"):
            row = [name, mask]
            for tokens in lengths:
                every = tokens + IDS.suffix
                visible = causal_pairs(tokens) + IDS.suffix * (tokens + IDS.length / 2)
                run = decoder(model, every, every**2 if mask == "dense mask" else visible)
                row.append(f"{run.attention / run.flops:.1%}")
            rows.append(row)
    return table(["model", "attention", *(f"P = {tokens:,}" for tokens in lengths)], rows)


TABLES: dict[str, Callable[[], str]] = {
    one.__name__: one
    for one in (
        phases,
        steps,
        efficiency,
        assumptions,
        levers,
        memory,
        scale,
        imbalance,
        prompt_length,
        group_size,
        length,
        live_share,
        vocabulary,
        catalogue,
        attention,
    )
}


def filled(text: str) -> str:
    """The text with each table between its two lines made anew. ValueError: a table that does not exist."""

    def one(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"table: expected one of {', '.join(TABLES)}, got {match[1]!r}")
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", one, text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.cost.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--write", type=Path, metavar="FILE", help="fill in this file's tables")
    options = parser.parse_args(arguments)
    if options.write is not None:
        options.write.write_text(filled(options.write.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    names = TABLES if options.only is None else [options.only]
    print("\n\n".join(f"{name} (prediction)\n\n{TABLES[name]()}" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
