"""Options of the theory's tables that take seconds."""

from __future__ import annotations

from typing import Any

AUC_GRADIENT: dict[str, Any] = {
    "items": 80, "users": 200, "codes": 5, "hidden_size": 16, "steps": 5, "prompts": 4, "group_size": 6, "groups": 64,
}  # fmt: skip
BEAM_DENSITY: dict[str, Any] = {
    "items": 80, "users": 200, "codes": 5, "hidden_size": 16, "steps": 0, "prompts": 12, "widths": [1, 4, 16, 32],
    "shown_width": 4,
}  # fmt: skip
RECALL_BOUNDS: dict[str, Any] = {
    "exhaustive_positives": [1, 2, 3], "exhaustive_negatives": 6, "positives": [1, 3], "negatives": 30, "ks": [1, 3, 5],
    "rankings": 40,
}  # fmt: skip
CORRELATION: dict[str, Any] = {"negatives": 100, "users": 60, "qualities": [0.5, 1.5], "ks": [1, 3, 5]}
