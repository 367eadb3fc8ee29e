"""TAWin as an advantage estimator of verl, algorithm.adv_estimator=tawin; written for verl 0.9.

verl finds it when VERL_USE_EXTERNAL_MODULES=tawin.integrations.verl is set: importing this module where verl is
installed registers it. verl hands a registered estimator rewards, mask, config and the rows' uids, but neither
log-probs nor beam ranks, and has re-ordered the rows by then. So `compute_advantage` is wrapped: the batch's
old_log_probs go along to the estimator, which ranks a group's negatives by log p. docs/VERL.md says more.

    A_m = (r_m - mean r) / (std r + 1e-4), times w_m for negatives       over the rows of one uid, as group_advantages

Knows nothing of rollouts, models and losses. Needs torch and triton; verl only to register.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from tawin_kernels import TAWin, group_advantages
from torch import Tensor

ESTIMATOR = "tawin"

_log_probs_of_the_batch: ContextVar[Tensor | None] = ContextVar("log_probs_of_the_batch", default=None)


def tawin_from_config(config: Any) -> TAWin:
    """The window that verl's `algorithm` config asks for (`+algorithm.tawin.anchor=4`), TAWin() where it is silent.

    config: anything with a dict's `get` (OmegaConf's DictConfig, verl's AlgoConfig, a dict), or None.
    ValueError or TypeError for options that TAWin does not have or refuses.
    """
    options = None if config is None else config.get("tawin", None)
    if options is None:
        return TAWin()
    if not isinstance(options, Mapping):
        raise TypeError(f"algorithm.tawin: expected options such as {{anchor: 2}}, got {options!r}")
    known = [field.name for field in fields(TAWin)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"algorithm.tawin: expected options among {', '.join(known)}, got {', '.join(unknown)}")
    return TAWin(**options)


def advantages_by_index(
    rewards: Tensor,
    scores: Tensor,
    valid: Tensor,
    index: Iterable[Any],
    *,
    tawin: TAWin | None,
    normalize_std: bool = True,
) -> Tensor:
    """`group_advantages` of rows in any order, those with the same index being a group; groups may differ in size.

    rewards: [N] floating, > 0 for positives. scores: [N] floating, what negatives are ranked by; rows of a group with
    equal scores are ranked as they come. valid: bool [N], the rows that exist; others get 0 and count nowhere.
    index: N hashable values, or a tensor [N]. tawin, normalize_std: as in `group_advantages`.
    Returns [N], fp32 (fp64 for fp64 rewards). ValueError that names the argument of another shape.
    """
    for name, tensor in (("rewards", rewards), ("scores", scores), ("valid", valid)):
        if rewards.dim() != 1 or tensor.shape != rewards.shape:
            raise ValueError(
                f"{name}: expected one value per row, as rewards [N] has, got {list(tensor.shape)} for "
                f"{list(rewards.shape)}"
            )
    values = index.tolist() if hasattr(index, "tolist") else list(index)  # elements of a tensor would all be unequal
    if len(values) != len(rewards):
        raise ValueError(f"index: expected a value for each of the {len(rewards)} rows, got {len(values)}")
    if not values:
        return torch.zeros_like(rewards)
    sizes: list[int] = []
    numbers: dict[Any, int] = {}
    places = []
    for value in values:
        number = numbers.setdefault(value, len(numbers))
        if number == len(sizes):
            sizes.append(0)
        places.append((number, sizes[number]))
        sizes[number] += 1
    group, place = torch.tensor(places, device=rewards.device).unbind(-1)  # [N] both

    def grouped(rows: Tensor) -> Tensor:
        return rows.new_zeros(len(sizes), max(sizes)).index_put((group, place), rows)  # [B, G]

    advantages = group_advantages(
        grouped(rewards), grouped(scores), tawin=tawin, normalize_std=normalize_std, valid=grouped(valid)
    )
    return advantages[group, place]


@torch.no_grad()
def tawin_advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    config: Any = None,
    index: Iterable[Any] | None = None,
    *,
    old_log_probs: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """verl's advantage estimator "tawin". Rows are responses, in any order.

    token_level_rewards: [N, T] floating; a response's reward is the sum of its row, > 0 for positives.
    response_mask: [N, T], 1 for the response's tokens. A row without any (verl's padding) does not exist.
    config: verl's `algorithm`; read are tawin, norm_adv_by_std_in_grpo, use_kl_in_reward and rollout_correction.
    index: N uids; rows of one uid are a group.
    old_log_probs: [N, T], log p of each token; None: those of the batch that verl's `compute_advantage`, as wrapped by
        `register`, works on. Negatives are ranked by the sum over the response.

    Returns advantages and returns, the same fp32 [N, T]: a response's advantage at each of its tokens. Groups with
    equal rewards, groups of one and rows that do not exist get 0. Raises ValueError or TypeError that names the
    argument or option.
    """
    _check_config(config)
    if index is None:
        raise ValueError("index: expected the uid of each row, got None; verl takes it from the batch's `uid`")
    log_probs = _log_probs_of_the_batch.get() if old_log_probs is None else old_log_probs
    if log_probs is None:
        raise ValueError(
            "old_log_probs: expected log p of each token, got None: the batch has neither old_log_probs nor "
            "rollout_log_probs, or the caller is not wrapped; set VERL_USE_EXTERNAL_MODULES=tawin.integrations.verl "
            "for every process, or wrap a compute_advantage of your own in tawin.integrations.verl.passing_log_probs"
        )
    shape = token_level_rewards.shape
    for name, tensor in (("response_mask", response_mask), ("old_log_probs", log_probs)):
        if len(shape) != 2 or tensor.shape != shape:
            raise ValueError(
                f"{name}: expected the shape of token_level_rewards, [N, T], got {list(tensor.shape)} for {list(shape)}"
            )
    mask = response_mask.bool()
    advantages = advantages_by_index(
        token_level_rewards.double().sum(-1),
        # In fp64, so that a rank does not depend on how far a batch is padded.
        log_probs.to(mask.device, torch.float64).masked_fill(~mask, 0.0).sum(-1),
        mask.any(-1),
        index,
        tawin=tawin_from_config(config),
        normalize_std=True if config is None else bool(config.get("norm_adv_by_std_in_grpo", True)),
    )
    by_token = advantages.float()[:, None] * mask  # [N, T]
    return by_token, by_token


def _check_config(config: Any) -> None:
    """Refuses what would make other numbers of rewards or log-probs than TAWin is about."""
    if config is None:
        return
    if config.get("use_kl_in_reward", False):
        raise ValueError(
            "algorithm.use_kl_in_reward: expected False with adv_estimator=tawin, got True: a KL in the rewards makes "
            "positives of negatives; use actor_rollout_ref.actor.use_kl_loss=True"
        )
    correction = config.get("rollout_correction", None)
    rejection = None if correction is None else correction.get("rollout_rs", None)
    if rejection is not None and "token_" in str(rejection):
        raise ValueError(
            "algorithm.rollout_correction.rollout_rs: expected None or seq_* with adv_estimator=tawin, got "
            f"{rejection!r}: responses are ranked by log p of all their tokens, and this hides some"
        )


@contextmanager
def _log_probs_at_hand(log_probs: Tensor | None) -> Iterator[None]:
    token = _log_probs_of_the_batch.set(log_probs)
    try:
        yield
    finally:
        _log_probs_of_the_batch.reset(token)


def passing_log_probs(compute_advantage: Callable[..., Any]) -> Callable[..., Any]:
    """A `compute_advantage(data, ...)` during which `tawin_advantages` finds the log-probs of `data`, verl's DataProto.

    They are data.batch["old_log_probs"], or where the actor has not computed them "rollout_log_probs". What
    `compute_advantage` does and returns is unchanged, for other estimators too.
    """

    @functools.wraps(compute_advantage)
    def wrapped(data: Any, *args: Any, **kwargs: Any) -> Any:
        names = [name for name in ("old_log_probs", "rollout_log_probs") if name in data.batch.keys()]  # noqa: SIM118
        with _log_probs_at_hand(data.batch[names[0]] if names else None):
            return compute_advantage(data, *args, **kwargs)

    wrapped.passes_log_probs = True  # type: ignore[attr-defined]
    return wrapped


def register() -> None:
    """Registers "tawin" with verl and wraps its `compute_advantage`, in this process. A second call changes nothing.

    Importing this module calls it where verl is installed. Raises ImportError where it is not.
    """
    from verl.trainer.ppo import core_algos, ray_trainer

    core_algos.register_adv_est(ESTIMATOR)(tawin_advantages)
    original = ray_trainer.compute_advantage
    if getattr(original, "passes_log_probs", False):
        return
    wrapped = passing_log_probs(original)
    # Trainers import the function by name, and those that are loaded already keep the one they have.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("compute_advantage") is original:
            module.compute_advantage = wrapped  # type: ignore[attr-defined]


_spec = find_spec("verl")
if _spec is not None and _spec.origin is not None:  # a mere folder of that name, say a clone's, has no origin
    register()
