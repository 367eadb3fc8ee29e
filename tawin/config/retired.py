"""Options that are none any more: what they always are now, and what to set in their place.

A config.yaml of an earlier run names them all, so a file that does is read, and said where it had set one otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Retired:
    """An option that went."""

    now: Any
    """What everything is done as if it were."""
    instead: str
    """What to set in its place."""


_WATCHDOG = "watchdog.action says what an alarm does"
_CLIPPING = "a lower learning_rate is what tames large gradients"
RETIRED = {
    "catalog.title_vocabulary": Retired(2048, "a tokenizer of another size comes with --model"),
    "policy.lora_alpha": Retired(32.0, "the stage's learning_rate scales what adapters learn"),
    "sft.max_grad_norm": Retired(1.0, _CLIPPING),
    "grpo.max_grad_norm": Retired(1.0, _CLIPPING),
    "grpo.importance_level": Retired("token", "grpo.loss_type gspo has one ratio per completion"),
    "grpo.tawin.anchor_steps_share": Retired(1.0, "grpo.steps says when grpo.tawin.anchor is reached"),
    "watchdog.window": Retired(20, _WATCHDOG),
    "watchdog.hit_share": Retired(0.2, _WATCHDOG),
    "watchdog.patience": Retired(10, _WATCHDOG),
    "watchdog.max_kl": Retired(10.0, _WATCHDOG),
}


def set_otherwise(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Retired options of a mapping as in the YAML whose value is not what it is now: (dotted name, old, now)."""
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from set_otherwise(value, f"{full}.")
        elif full in RETIRED and value != RETIRED[full].now:
            yield full, value, RETIRED[full].now


def warn_of(source: str, name: str, value: Any) -> None:
    """Say on stderr that a retired option of `source` is not heeded, where that makes a difference."""
    option = RETIRED[name]
    if value != option.now:
        print(
            f"warning: {source}: {name} is no option any more: {value!r} is taken for {option.now!r}; {option.instead}",
            file=sys.stderr,
        )


def refuse_in(arguments: Sequence[str]) -> None:
    """Raise ValueError that names the successor, for a command line with a retired option."""
    given = {one.split("=")[0].removeprefix("--").replace("-", "_") for one in arguments if one.startswith("--")}
    for name, option in RETIRED.items():
        if name in given:
            raise ValueError(f"--{name}: no option any more, it is always {option.now!r}; {option.instead}")


def without_retired(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A mapping as in the YAML without the retired options whose value is what it is now."""
    kept = {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            kept[name] = without_retired(value, f"{full}.")
        elif full not in RETIRED or value != RETIRED[full].now:
            kept[name] = value
    return kept
