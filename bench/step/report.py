"""What was measured of the training steps: FLOPs done and needed beside the seconds, a table for people, JSON.

FLOPs are counted from the sizes of the step by `model`, not measured; "needed" is the least that any way has to
do. Utilisation is needed FLOPs of policy forward, loss and backward over what the device's matrix products could have
done in the seconds of these phases: work that is done twice does not raise it. Nothing here runs a model.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tawin.rl.rollout import may_share_prompts
from tawin.run.phases import PHASES
from tools.cost.model import TRAINING, ModelShape, StepShape, needed_flops, step_flops

from .cases import StepCase
from .ways import GOALS

COUNTED_AS = {"ours": "tawin", "shared_prefix": "shared_prefix", "shared_prefix_plain": "shared_prefix", "rere": "rere"}


@dataclass
class WayFigures:
    """Of one way. missing: why it could not run, and then there is nothing else."""

    name: str
    prompts_at_once: int
    missing: str | None = None
    agreement: str | None = None  # with ours; None for ours itself
    seconds: list[float] = field(default_factory=list)  # of whole steps, in the order in which they were taken
    phases: list[dict[str, float]] = field(default_factory=list)  # seconds of a step each
    tokens: dict[str, int] = field(default_factory=dict)  # through policy and reference in a step
    memory: dict[str, int] | None = None  # bytes in a process of its own, before the step and at its peak
    flops: dict[str, float] = field(default_factory=dict)  # done, by phase

    @property
    def median(self) -> float:
        """Of an even number of steps the shorter of the two in the middle: one that was taken."""
        return statistics.median_low(self.seconds)

    @property
    def typical_phases(self) -> dict[str, float]:
        """Of the step that took the median time: phases of one step add up."""
        return self.phases[self.seconds.index(self.median)]


@dataclass
class CaseFigures:
    """Of one case."""

    name: str
    description: str
    live_share: float
    shape: StepShape
    needed: dict[str, float]  # FLOPs by phase
    ways: list[WayFigures]

    @property
    def measured(self) -> list[WayFigures]:
        return [way for way in self.ways if way.missing is None]

    @property
    def ours(self) -> WayFigures:
        return next(way for way in self.ways if way.name == "ours")


def step_shape(case: StepCase, token_ids: Tensor, live_share: float) -> StepShape:
    """The sizes that FLOPs are counted from, as found in the batch. token_ids int64 [B, G, L], -100 = padding."""
    input_ids, attention_mask = case.catalog.encode_histories(case.histories)
    prompt_tokens = float(attention_mask.sum(1).float().mean())
    completions = (token_ids >= 0).sum(-1).float()  # [B, G], 0 = missing
    length = max(1, round(float(completions[completions > 0].mean())))
    most = case.setting.group_size * (length - 1)
    return StepShape(
        prompts=len(input_ids),
        prompt_tokens=prompt_tokens,
        group_size=case.setting.group_size,
        length=length,
        live_share=live_share,
        prefix_share=min(1.0, prefixes_run(token_ids) / len(input_ids) / most) if most else 0.0,
        has_reference=case.setting.beta > 0,
        padded_tokens=float(input_ids.shape[1]),
        common_tokens=min(common_tokens(input_ids, attention_mask), prompt_tokens - 1),
        shares_prefill=may_share_prompts(case.model, case.config.grpo),
        trie_tokens=len(case.catalog.trie.edge_tokens.unique()),
    )


def model_shape(case: StepCase) -> ModelShape:
    return ModelShape.from_config(case.model.config)


def flops_of(way: str, case: StepCase, shape: StepShape) -> dict[str, float]:
    return step_flops(model_shape(case), shape, COUNTED_AS[way])  # type: ignore[arg-type]


def needed_of(case: StepCase, shape: StepShape) -> dict[str, float]:
    return needed_flops(model_shape(case), shape)


def prefixes_run(token_ids: Tensor) -> int:
    """Distinct prefixes within a group that another token follows. token_ids int64 [B, G, L], -100 = padding."""
    total = 0
    for group in token_ids.tolist():
        rows = [tuple(token for token in row if token >= 0) for row in group]
        total += len({row[:depth] for row in rows for depth in range(1, len(row))})
    return total


def common_tokens(input_ids: Tensor, attention_mask: Tensor) -> int:
    """How many tokens all of these left-padded prompts begin with alike."""
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
    common = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        common += 1
    return common


def utilisation(figures: CaseFigures, way: WayFigures, peak: float) -> float:
    """Share of the device's `peak` FLOPs a second that the needed ones of the training phases are."""
    seconds = sum(way.typical_phases[phase] for phase in TRAINING)
    return sum(figures.needed[phase] for phase in TRAINING) / (seconds * peak)


def table(figures: CaseFigures, peak: float | None = None) -> str:
    """For people: a column a way. peak: FLOPs a second of the device's matrix products; None: no utilisation."""
    ways = figures.measured
    lines = [
        f"{figures.name}: {figures.description}",
        f"{figures.live_share:.0%} of the groups live; {figures.shape.prompt_tokens:.0f} tokens a prompt on average, "
        f"{figures.shape.padded:.0f} with padding, {figures.shape.common_tokens:.0f} of them the same for all",
        f"{'':<18}" + "".join(f"{way.name:>22}" for way in ways) + f"{'least':>12}",
        f"{'':<18}" + f"{'ms     FLOPs':>22}" * len(ways) + f"{'FLOPs':>12}",
    ]

    def row(name: str, cells: list[str], last: str = "") -> None:
        lines.append(f"{name:<18}" + "".join(f"{cell:>22}" for cell in cells) + f"{last:>12}")

    for phase in PHASES:
        row(phase, [_cell(way.typical_phases[phase], way.flops[phase]) for way in ways], _flops(figures.needed[phase]))
    row("other", [_cell(_other(way), 0.0) for way in ways])
    total = [_cell(way.median, sum(way.flops.values())) for way in ways]
    row("step (median)", total, _flops(sum(figures.needed.values())))
    row("step (fastest)", [_cell(min(way.seconds), 0.0) for way in ways])
    row("policy tokens", [f"{way.tokens['policy']:,}" for way in ways])
    row("reference tokens", [f"{way.tokens['reference']:,}" for way in ways])
    row("prompts at once", [str(way.prompts_at_once) for way in ways])
    row("peak memory", [_bytes(way.memory, "peak") for way in ways])
    row("before the step", [_bytes(way.memory, "before") for way in ways])
    if peak is not None:
        row("utilisation", [f"{utilisation(figures, way, peak):.1%}" for way in ways])
    for way in figures.ways:
        if way.missing is not None:
            lines.append(f"{way.name}: not run: {way.missing}")
        elif way.name != "ours":
            ratio, best = ratios(figures.ours, way)
            lines.append(f"ours is {ratio:.1f}x as fast as {way.name} (fastest runs: {best:.1f}x), goal {goal(way)}")
            if (saved := memory_ratio(figures.ours, way)) is not None:
                lines.append(f"  its peak of memory is {saved:.1f}x ours; same answer: {way.agreement}")
            else:
                lines.append(f"  same answer: {way.agreement}")
    return "\n".join(lines)


def goal(way: WayFigures) -> str:
    return f"{GOALS[way.name]:.0f}x"


def ratios(ours: WayFigures, peer: WayFigures) -> tuple[float, float]:
    """How many times as fast ours is: by the medians, and by the fastest steps, those least disturbed."""
    return peer.median / ours.median, min(peer.seconds) / min(ours.seconds)


def memory_ratio(ours: WayFigures, peer: WayFigures) -> float | None:
    if ours.memory is None or peer.memory is None:
        return None
    return peer.memory["peak"] / ours.memory["peak"]


def as_json(cases: list[CaseFigures], machine: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """For machines, every single time included."""
    return {
        "machine": machine,
        "peak_flops_per_second": peak,
        "cases": [
            {
                "case": case.name,
                "description": case.description,
                "live_share": case.live_share,
                "shape": vars(case.shape),
                "needed_flops": case.needed,
                "ways": [_way_as_json(case, way, peak) for way in case.ways],
            }
            for case in cases
        ],
    }


def _way_as_json(case: CaseFigures, way: WayFigures, peak: float | None) -> dict[str, Any]:
    if way.missing is not None:
        return {"way": way.name, "missing": way.missing}
    compared: dict[str, Any] = {}
    if way.name != "ours":
        ratio, best = ratios(case.ours, way)
        compared = {
            "goal": GOALS[way.name],
            "ratio_of_medians": ratio,
            "ratio_of_fastest": best,
            "ratio_of_peak_memory": memory_ratio(case.ours, way),
        }
    return {
        "way": way.name,
        **compared,
        "agreement": way.agreement,
        "prompts_at_once": way.prompts_at_once,
        "seconds": way.seconds,
        "phase_seconds": way.phases,
        "flops": way.flops,
        "tokens": way.tokens,
        "memory_bytes": way.memory,
        "utilisation": None if peak is None else utilisation(case, way, peak),
    }


def _other(way: WayFigures) -> float:
    """Of that step, what lies in no phase; where phases are timed apart from the step, it may be below 0."""
    return way.median - sum(way.typical_phases.values())


def _cell(seconds: float, flops: float) -> str:
    """Milliseconds, and FLOPs where there are any."""
    return f"{seconds * 1e3:,.1f}{_flops(flops):>10}"


def _flops(flops: float) -> str:
    if flops == 0:
        return ""
    power = min(5, int(math.log10(flops)) // 3)
    return f"{flops / 1e3**power:#.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"


def _bytes(memory: dict[str, int] | None, key: str) -> str:
    return "not measured" if memory is None else f"{memory[key] / 2**20:,.0f} MiB"
