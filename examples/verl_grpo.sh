#!/usr/bin/env bash
# GRPO with TAWin in verl 0.9, one node of 8 GPUs:
#     pip install -e . 'verl[vllm]'
#     examples/verl_grpo.sh TRAIN.parquet VALID.parquet Qwen/Qwen2.5-0.5B-Instruct [more options of verl]
# The files are in verl's format; reward_model.ground_truth is the item that the user went on to.
# Its options are checked against verl's own config; a run needs GPUs and has not been made.
set -euo pipefail
train=$1 valid=$2 model=$3
shift 3

export VERL_USE_EXTERNAL_MODULES=tawin.integrations.verl
exec python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=tawin \
    +algorithm.tawin.anchor=2 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=64 \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
    actor_rollout_ref.actor.optim.lr=1e-5 \
    actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64 \
    actor_rollout_ref.model.path="$model" \
    data.train_files="$train" \
    data.val_files="$valid" \
    data.train_batch_size=128 \
    data.max_response_length=128 \
    reward.custom_reward_function.path="$(dirname "$0")/verl_reward.py" \
    trainer.n_gpus_per_node=8 \
    "$@"
