"""Where the options of a run begin: the presets of `tawin train`."""

from __future__ import annotations

from . import (
    CatalogConfig,
    CheckpointConfig,
    Config,
    EvaluationConfig,
    GRPOConfig,
    PolicyConfig,
    PromptConfig,
    SFTConfig,
    SplitConfig,
    TAWinConfig,
)

PRESETS: dict[str, Config] = {
    # A first look: synthetic data, under 3 minutes on 2 CPU cores.
    "demo": Config(
        policy=PolicyConfig(hidden_size=64, layers=2, intermediate_size=192),
        sft=SFTConfig(learning_rate=3e-3, epochs=12),
        grpo=GRPOConfig(learning_rate=2e-4, batch_size=128, steps=60),
        evaluation=EvaluationConfig(valid_users=2000),
    ),
    # Real catalogues of up to 31,000 users on 2 CPU cores, within minutes: one token per item, begun at what goes
    # together in the training data.
    "cpu-small": Config(
        split=SplitConfig(max_history=20, rl_seen=1),
        catalog=CatalogConfig(item_tokens="item"),
        policy=PolicyConfig(hidden_size=96, layers=2, intermediate_size=256, attention_dropout=0.1, hidden_dropout=0.2),
        # No patience: the last epochs, at a rate near 0, are the best, and valid is flat before them.
        sft=SFTConfig(learning_rate=3e-3, weight_decay=0.0, batch_size=64, epochs=8, patience=8),
    ),
    # A pretrained model of about 135 M weights on 2 CPU cores: one token per item, so that a history is ten tokens and
    # an answer one; as titles they are thirty times as many (docs/PRETRAINED.md).
    "cpu-pretrained": Config(
        model="HuggingFaceTB/SmolLM2-135M",
        catalog=CatalogConfig(item_tokens="item"),
        sft=SFTConfig(learning_rate=3e-4, batch_size=64, epochs=5, patience=1),
        grpo=GRPOConfig(learning_rate=3e-5, batch_size=64, steps=40, group_size=16),
        evaluation=EvaluationConfig(beam_width=10, valid_users=500),
        checkpoints=CheckpointConfig(keep=1),
    ),
    # The paper's settings (arXiv 2604.22504), on a GPU: Qwen2.5-0.5B with titles prompted for in ReRe's way. What it
    # leaves open is ReRe's: batches, weight of the KL term, warm-up. The window is a choice (docs/METHOD.md).
    "paper": Config(
        model="Qwen/Qwen2.5-0.5B",
        catalog=CatalogConfig(item_tokens="title"),
        prompt=PromptConfig(style="rere"),
        sft=SFTConfig(learning_rate=3e-4, batch_size=16, gradient_accumulation=8, epochs=10, patience=3),
        grpo=GRPOConfig(
            learning_rate=1e-5,
            batch_size=16,
            gradient_accumulation=4,
            steps=None,
            epochs=1,
            group_size=16,
            beta=1e-3,
            warmup_share=0.03,
            tawin=TAWinConfig(anchor=2.0, temperature=1.0),
        ),
        evaluation=EvaluationConfig(beam_width=50),
    ),
}
