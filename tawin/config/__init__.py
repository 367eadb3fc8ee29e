"""Every option of the main job, as frozen dataclasses: the field names are the command line and the YAML.

A run's config is the preset (`presets`), then the YAML file (`files`), then the command line; the later one wins.
Nothing here knows of data or models: it is only checked that values make sense by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .checks import require, require_choices, require_type
from .data import CatalogConfig, PromptConfig, SplitConfig, SyntheticConfig
from .running import KS, CheckpointConfig, EvaluationConfig, GuardConfig, TrackingConfig, WatchdogConfig
from .training import GRPOConfig, OptimizerConfig, PolicyConfig, SFTConfig, TAWinConfig

__all__ = [
    "KS",
    "CatalogConfig",
    "CheckpointConfig",
    "Config",
    "EvaluationConfig",
    "GRPOConfig",
    "GuardConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "PromptConfig",
    "SFTConfig",
    "SplitConfig",
    "SyntheticConfig",
    "TAWinConfig",
    "TrackingConfig",
    "WatchdogConfig",
]


@dataclass(frozen=True)
class Config:
    """Train a generative recommender: SFT, then GRPO with TAWin."""

    data: str | None = None
    """Folder with interactions.parquet and items.parquet; None: a synthetic catalogue."""
    data_cache: str | None = None
    """Folder for the memory-mapped form of the data; None: data is held in memory."""
    model: str | None = None
    """Folder or hub name of a causal LM with its tokenizer; None: a small Qwen2 from scratch."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Of supervised fine-tuning's forward; all others have masks that sdpa alone takes. flash_attention_2 needs
    flash-attn and a GPU."""
    seed: int = 0
    """Of everything drawn at random: data, weights, batches, dropout, samples."""
    deterministic: bool = False
    """Only kernels that give the same bits every time, on a GPU too (slower there; an error where there is none)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require_choices(self, "")
        require_type("seed", self.seed, int)
        require_type("deterministic", self.deterministic, bool)
        require(0 <= self.seed < 2**31, "seed", "0 or more, below 2 ** 31", self.seed)
        require(
            self.prompt.is_plain or not self.catalog.instruction,
            "catalog.instruction",
            "'' where options of `prompt` are given (write it into prompt.template)",
            self.catalog.instruction,
        )

        require(
            self.prompt.title_words is None or self.catalog.item_tokens == "title",
            "prompt.title_words",
            "None where items are not titles (catalog.item_tokens)",
            self.prompt.title_words,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the KL term takes a model of its own: adapters can be switched off for it."""
        return self.grpo.beta > 0 and self.policy.lora_rank == 0
