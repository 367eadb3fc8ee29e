"""The part of verl's trainer that TAWin plugs into, on a toy: no GPU, no Ray, no vLLM. python examples/verl_loop.py

64 users, 32 items, a response of one token. As in verl responses are sampled, rows lose their order, the estimator is
found by its name, and verl's own loss trains the policy: here a table of logits. verl_grpo.sh starts a real run.
"""

import os

os.environ["VERL_USE_EXTERNAL_MODULES"] = "tawin.integrations.verl"  # before verl is imported

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.workers.config import FSDPActorConfig
from verl_reward import compute_score

USERS, ITEMS, N = 64, 32, 16  # N responses a user
algorithm = OmegaConf.create({"adv_estimator": "tawin", "tawin": {"anchor": 0, "window": 2.0}})
actor = FSDPActorConfig(strategy="fsdp", rollout_n=N, ppo_micro_batch_size_per_gpu=USERS * N)

torch.manual_seed(0)
wanted = torch.randint(ITEMS, (USERS,))
logits = torch.nn.Parameter(torch.zeros(USERS, ITEMS))
optimizer = torch.optim.Adam([logits], lr=0.1)

for update in range(41):
    if update % 20 == 0:
        chance = logits.softmax(-1)[torch.arange(USERS), wanted].mean()
        print(f"update {update:2d}: the wanted item comes with probability {chance:.0%}")
    user = torch.arange(USERS).repeat_interleave(N)[torch.randperm(USERS * N)]  # [rows], re-ordered as for balance
    item = torch.distributions.Categorical(logits=logits[user]).sample()  # [rows]
    log_probs = logits.log_softmax(-1)[user, item][:, None]  # [rows, 1]
    rewards = [compute_score("toy", str(int(i)), str(int(wanted[u]))) for u, i in zip(user, item, strict=True)]
    batch = {
        "token_level_rewards": torch.tensor(rewards)[:, None],
        "response_mask": torch.ones(USERS * N, 1),
        "old_log_probs": log_probs.detach(),
    }
    data = DataProto.from_dict(batch, non_tensors={"uid": np.array([str(int(u)) for u in user], dtype=object)})
    data = compute_advantage(data, adv_estimator=algorithm.adv_estimator, num_repeat=N, config=algorithm)
    loss, _ = compute_policy_loss_vanilla(
        data.batch["old_log_probs"],
        log_probs,
        data.batch["advantages"],
        data.batch["response_mask"],
        loss_agg_mode="seq-mean-token-mean",
        config=actor,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
