"""TAWin in the real verl: its registry, its config, its compute_advantage, its loss. Skipped where verl is missing.

    pip install -e '.[verl]' pytest hypothesis && pytest tests/tawin/integrations/

in an environment of its own. No rollout and no trainer is run: those want a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tawin_kernels import TAWin, grpo_loss

from .verl_batches import group_by_group, responses

if getattr(find_spec("verl"), "origin", None) is None:
    pytest.skip("verl is not installed: pip install -e '.[verl]'", allow_module_level=True)

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.utils import need_critic
from verl.trainer.ppo.v1 import utils as v1_utils
from verl.utils.config import validate_config
from verl.workers.config import FSDPActorConfig

from tawin.integrations import verl as integration

ROOT = Path(__file__).parents[3]
CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # fp32: the sums of a padded group may be added in another order


def config_of(*overrides: str) -> Any:
    """verl's whole config, made as its command line makes it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def batch_of(sizes: list[int], *, seed: int = 0, padding: int = 0) -> tuple[DataProto, dict[str, torch.Tensor], list]:
    tensors, uids = responses(sizes, seed=seed, padding=padding)
    return DataProto.from_dict(tensors, non_tensors={"uid": np.array(uids, dtype=object)}), tensors, uids


def legacy(data: DataProto, **options: Any) -> DataProto:
    return ray_trainer.compute_advantage(data, num_repeat=8, **options)


def v1(data: DataProto, **options: Any) -> DataProto:
    keys = [f"{uid}_{i}_0" for i, uid in enumerate(data.non_tensor_batch["uid"])]
    return v1_utils.compute_advantage_for_multi_trajectories(data, keys, num_repeat=8, **options)


def test_the_registry_has_tawin():
    assert core_algos.get_adv_estimator_fn("tawin") is integration.tawin_advantages


def test_registering_again_changes_nothing():
    before = ray_trainer.compute_advantage
    integration.register()
    assert ray_trainer.compute_advantage is before
    assert core_algos.get_adv_estimator_fn("tawin") is integration.tawin_advantages


def test_an_estimator_of_ones_own_is_called_as_recorded():
    called = {}

    def probe(**arguments):
        called.update(arguments)
        return torch.zeros(7, 5), torch.zeros(7, 5)

    core_algos.ADV_ESTIMATOR_REGISTRY["probe"] = probe
    try:
        data, tensors, _ = batch_of([4, 3])
        legacy(data, adv_estimator="probe", config=config_of().algorithm)
    finally:
        del core_algos.ADV_ESTIMATOR_REGISTRY["probe"]
    # No log-probs, though the batch has them: this is why compute_advantage is wrapped. A verl that passes them along
    # under this name needs no wrapper.
    assert called.keys() == {"token_level_rewards", "response_mask", "config", "index"}
    assert called["index"] is data.non_tensor_batch["uid"]
    assert torch.equal(called["token_level_rewards"], tensors["token_level_rewards"])


@pytest.mark.parametrize("compute_advantage", [legacy, v1])
def test_both_of_its_trainers_get_the_advantages_of_each_group(compute_advantage):
    config = config_of("algorithm.adv_estimator=tawin", "+algorithm.tawin.anchor=1", "+algorithm.tawin.window=2")
    data, tensors, uids = batch_of([8, 8, 5, 1, 8], padding=2)
    result = compute_advantage(data, adv_estimator=config.algorithm.adv_estimator, config=config.algorithm)
    expected = group_by_group(tensors, uids, tawin=TAWin(anchor=1, window=2.0))
    assert expected.any()
    torch.testing.assert_close(result.batch["advantages"], expected, **CLOSE)
    torch.testing.assert_close(result.batch["returns"], expected, **CLOSE)


def test_other_estimators_get_what_they_got_before():
    data, tensors, uids = batch_of([8, 8])
    result = legacy(data, adv_estimator="grpo", config=config_of().algorithm)
    expected, _ = core_algos.compute_grpo_outcome_advantage(
        tensors["token_level_rewards"].clone(), tensors["response_mask"], np.array(uids)
    )
    torch.testing.assert_close(result.batch["advantages"], expected, rtol=0, atol=0)


def test_a_misspelt_option_is_refused_in_its_config():
    config = config_of("algorithm.adv_estimator=tawin", "+algorithm.tawin.anker=1")
    with pytest.raises(ValueError, match="got anker"):
        legacy(batch_of([4])[0], adv_estimator="tawin", config=config.algorithm)


@pytest.mark.parametrize(
    ("loss_agg_mode", "loss_type"),
    [("seq-mean-token-mean", "grpo"), ("token-mean", "dapo"), ("seq-mean-token-sum-norm", "dr_grpo")],
)
def test_its_loss_of_these_advantages_is_ours(loss_agg_mode, loss_type):
    data, tensors, _ = batch_of([8, 8, 8])
    config = config_of("algorithm.adv_estimator=tawin").algorithm
    advantages = legacy(data, adv_estimator="tawin", config=config).batch["advantages"]
    old_log_probs = tensors["old_log_probs"]
    log_probs = old_log_probs + 0.3 * torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    actor = FSDPActorConfig(strategy="fsdp", rollout_n=8, ppo_micro_batch_size_per_gpu=24, loss_agg_mode=loss_agg_mode)
    loss, metrics = core_algos.compute_policy_loss_vanilla(
        old_log_probs, log_probs, advantages, tensors["response_mask"], loss_agg_mode, actor
    )
    assert metrics["actor/pg_clipfrac"] > 0

    mask = tensors["response_mask"].bool()
    sequence_advantages = (advantages * mask).sum(-1) / mask.sum(-1)
    ours = grpo_loss(
        log_probs.masked_fill(~mask, 0.0)[None],
        mask[None],
        sequence_advantages[None],
        old_log_probs=old_log_probs[None],
        loss_type=loss_type,
    )
    torch.testing.assert_close(loss, ours.loss, rtol=1e-5, atol=1e-6)  # fp32 sums in another order


def test_the_options_of_the_launch_script_are_options_of_verl(tmp_path):
    """A `python` that only says what it was called with stands in for the one that would train."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintenv VERL_USE_EXTERNAL_MODULES\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    variable = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES"
    more = f"+{variable}=tawin.integrations.verl"  # docs/VERL.md
    printed = subprocess.run(
        [ROOT / "examples" / "verl_grpo.sh", "train.parquet", "valid.parquet", "model", more],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert printed[:3] == ["tawin.integrations.verl", "-m", "verl.trainer.main_ppo"]
    config = config_of(*printed[3:])
    assert OmegaConf.select(config, variable) == "tawin.integrations.verl"
    assert integration.tawin_from_config(config.algorithm) == TAWin(anchor=2)
    assert need_critic(config) is False
    validate_config(config, use_reference_policy=False, use_critic=False)
    path = Path(config.reward.custom_reward_function.path)
    assert path.samefile(ROOT / "examples" / "verl_reward.py")


def test_the_environment_variable_registers_it_in_each_process_and_each_ray_worker():
    script = """
import ray, verl

def state():
    import verl
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1 import utils
    return "tawin" in core_algos.ADV_ESTIMATOR_REGISTRY and utils.compute_advantage.passes_log_probs

assert state()
ray.init(num_cpus=1, include_dashboard=False)
assert ray.get(ray.remote(state).remote())
"""
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_MODULES": "tawin.integrations.verl",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",  # on a busy machine Ray's own 60 do not suffice
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    completed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
