"""What a GPU run found, for people."""

from __future__ import annotations

from typing import Any


def table(report: dict[str, Any]) -> str:
    """Ours against the fastest other way of every group of benchmarks, and the ceilings."""
    lines = []
    found = report["parts"].get("ceilings", {})
    if "copy_bytes_per_second_median" in found:
        copy, product = found["copy_bytes_per_second_median"], found["bf16_flops_per_second_median"]
        lines.append(f"copy {copy / 1e12:.2f} TB/s, bf16 matrix product {product / 1e12:.0f} TFLOP/s (medians)")
    lines.append(f"{'benchmark':<52}{'ours, us':>11}{'other, us':>11}{'ratio':>8}{'of floor':>10}  other ways, us")
    for part, result in report["parts"].items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for one in result.get("benchmarks", []):
            groups.setdefault(one["group"] or "", []).append(one)
        for group, members in groups.items():
            ours = [one for one in members if way_of(one) == "ours"]
            others = sorted((one for one in members if way_of(one) != "ours"), key=microseconds_of)
            if not ours:
                continue
            line = f"{(part + ': ' + group)[:51]:<52}{microseconds_of(ours[0]):>11.1f}"
            if others:
                ratio = microseconds_of(others[0]) / microseconds_of(ours[0])
                line += f"{microseconds_of(others[0]):>11.1f}{ratio:>7.2f}x"
            else:
                line += " " * 19
            over = ours[0]["extra_info"].get("time_over_floor")
            named = ", ".join(f"{way_of(one)} {microseconds_of(one):.0f}" for one in others)
            lines.append(f"{line}{over if over is not None else '-':>10}  {named or '-'}")
    return "\n".join(lines)


def way_of(benchmark: dict[str, Any]) -> str:
    """ "ours" or the name of a peer."""
    if "way" in benchmark["extra_info"]:
        return str(benchmark["extra_info"]["way"])
    name = benchmark["name"].removeprefix("test_")
    return "ours" if "tree_attention" in name else name


def microseconds_of(benchmark: dict[str, Any]) -> float:
    """Of one call: a round of some suites is many."""
    info = benchmark["extra_info"]
    return float(
        info.get("microseconds_a_step") or info.get("microseconds_a_call") or benchmark["stats"]["median"] * 1e6
    )
