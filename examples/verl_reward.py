"""verl's reward of a response: 1 if it names the item that the user went on to, else 0, as TAWin wants it."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    return float(solution_str.strip() == ground_truth.strip())
