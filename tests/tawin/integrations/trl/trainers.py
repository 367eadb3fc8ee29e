"""Trainers of TRL around tiny models and a small catalogue, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tawin_kernels import ItemTrie
from trl import GRPOConfig

from tawin import beam_search
from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.integrations.trl import beam_rollout, item_reward

from ...models import tiny_model

VOCABULARY = 40
TOKENIZER = make_semantic_tokenizer([f"<a_{code}>" for code in range(VOCABULARY - 3)])
# Items of one to three tokens; 2 and 5 are spelled alike.
ITEMS = [[10 + i, 20 + j] for i in range(4) for j in range(5)] + [[30, 31, 32], [30, 31, 33], [34]]
ITEMS[5] = ITEMS[2]
TRIE = ItemTrie.from_sequences(ITEMS)
GROUP = 4
PROMPTS = ["".join(f"<a_{(7 * i + 3 * j) % 37}>" for j in range(1 + i % 3)) for i in range(12)]


def _targets() -> list[int]:
    """Of two prompts in three, one of the four beams of the model that tests begin with; else an item at random."""
    targets = []
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
        found = beam_search(tiny_model("qwen2", VOCABULARY), ids, torch.ones_like(ids), TRIE, GROUP)
        targets.append(int(found.item_ids[0, i % GROUP]) if i % 3 else (5 * i) % len(ITEMS))
    return targets


DATASET = Dataset.from_dict({"prompt": PROMPTS, "target": _targets()})
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")

QUIETLY = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
"""What TRL says of itself; the pytestmark of each file."""


def config(folder: Path, **changes: Any) -> GRPOConfig:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "num_generations": GROUP,
        "max_completion_length": 5,
        "per_device_train_batch_size": 6,  # not a multiple of the group: groups straddle micro-batches
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "per_device_eval_batch_size": 24,
        "learning_rate": 1e-3,
    }
    return GRPOConfig(**options | changes)


def make(
    trainer: type, folder: Path, model: Any = None, *, options: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A trainer with beams; options: of the trainer, changes: of GRPOConfig."""
    arguments = {
        "reward_funcs": item_reward(TRIE),
        "train_dataset": DATASET,
        "eval_dataset": DATASET,
        "processing_class": TOKENIZER,
        "rollout_func": beam_rollout(TRIE),
    }
    model = tiny_model("qwen2", VOCABULARY) if model is None else model
    return trainer(model, args=config(folder, **changes), **arguments | (options or {}))


def generation_batch(count: int = 6) -> list[dict[str, Any]]:
    return [DATASET[i] for i in range(count) for _ in range(GROUP)]
