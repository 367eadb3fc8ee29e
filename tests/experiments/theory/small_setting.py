"""A setting of seconds."""

from __future__ import annotations

from experiments.theory.setting import Setting, make_setting


def small_setting(*, steps: int = 0, mixed_lengths: bool = False, prompts: int = 6) -> Setting:
    return make_setting(
        users=200, items=80, codes=5, hidden_size=16, steps=steps, prompts=prompts, seed=0, mixed_lengths=mixed_lengths
    )
