"""Whether the installed TRL is one that the trainer fits: the private methods that it overrides, and its options.

There is no upper bound on TRL. A release that changed none of these works; one that did is refused by name when
`tawin.integrations.trl` is imported, rather than trained with wrongly.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

_OVERRIDDEN = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": (
        "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
        "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
        "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
    ),
}  # fmt: skip
"""Methods of GRPOTrainer and their arguments behind `self`, as TRL 1.16 has them."""


def require_known_trl(trainer: type, config: type, options: Iterable[str]) -> None:
    """`trainer`, `config`: TRL's GRPOTrainer and GRPOConfig; `options`: the config's fields that must be there.

    Raises:
        ImportError: naming the first method or option that is not as it was.
    """
    for name, expected in _OVERRIDDEN.items():
        if not hasattr(trainer, name):
            _refuse(f"expected GRPOTrainer.{name}, which is gone")
        found = tuple(inspect.signature(getattr(trainer, name)).parameters)[1:]
        if found != expected:
            _refuse(f"expected GRPOTrainer.{name}({', '.join(expected)}), got ({', '.join(found)})")
    for name in options:
        if name not in _fields(config):
            _refuse(f"expected the option GRPOConfig.{name}, which is gone")


def _fields(config: Any) -> Iterable[str]:
    return config.__dataclass_fields__.keys()


def _refuse(what: str) -> None:
    raise ImportError(f"tawin.integrations.trl does not know TRL {version('trl')}: {what}. TRL 1.16 works")
