"""TAWin in TRL's GRPOTrainer: beams as completions, a reward for the right item, windowed advantages, our loss.

    trainer = TAWinGRPOTrainer(
        model, reward_funcs=item_reward(trie), args=GRPOConfig(...), train_dataset=dataset,
        rollout_func=beam_rollout(trie), tawin=TAWin.for_top_k(3),
    )

`beam_rollout` and `item_reward` serve TRL's own GRPOTrainer too. What is supported and what is refused: docs/TRL.md.
"""

from .completions import BeamRollout, beam_rollout, item_reward
from .trainer import TAWinGRPOTrainer

__all__ = ["BeamRollout", "TAWinGRPOTrainer", "beam_rollout", "item_reward"]
