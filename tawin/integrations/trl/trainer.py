"""TRL's GRPOTrainer with TAWin's advantages and our loss.

TRL generates, rewards, shuffles the rows of a generation batch and cuts it into micro-batches. What needs whole groups
is done where they are whole: advantages are weighted right after generation, and travel as a number a row. The loss
knows rows alone. It overrides methods that TRL keeps private, and nothing else; `seams` looks at them first.
"""

from __future__ import annotations

from typing import Any

import torch
from tawin_kernels import TAWin, grpo_loss, tawin_weights
from tawin_kernels.ops.loss.types import LOSS_KINDS
from torch import Tensor

from .completions import BeamRollout
from .policy_head import check_model, score_tokens_in_forward
from .seams import require_known_trl

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError(f"tawin.integrations.trl needs TRL ({error}): pip install 'tawin[trl]'") from error

_KNOWN_OPTIONS: dict[str, tuple[Any, ...]] = {
    "loss_type": tuple(name for name, kind in LOSS_KINDS.items() if not kind.sequence_level),
    "importance_sampling_level": ("token", "sequence"),
    "cast_lm_head_to_fp32": (False,),
    "delta": (None,),
    "entropy_coef": (0.0,),
    "mask_truncated_completions": (False,),
    "off_policy_mask_threshold": (None,),
    "top_entropy_quantile": (1.0,),
    "use_adaptive_entropy": (False,),
    "use_liger_kernel": (False,),
    "use_vllm": (False,),
}
"""Options of GRPOConfig that change the loss, and the values with which it is ours."""

require_known_trl(GRPOTrainer, GRPOConfig, _KNOWN_OPTIONS)


class TAWinGRPOTrainer(GRPOTrainer):
    """GRPOTrainer, with negatives weighted by TAWin and a loss that makes no [tokens, vocabulary] tensor.

    tawin: the window of negatives, ranked by the rollout's `beam_scores`; None: TRL's own advantages.
    All other arguments are GRPOTrainer's. ValueError by name for options and models that the loss would get wrong.

    Without KL, rows without an advantage, most of them in recommendation, are left out of the forward; exactly.
    """

    def __init__(self, *arguments: Any, tawin: TAWin | None = TAWin(), **options: Any) -> None:  # noqa: B008 (frozen)
        super().__init__(*arguments, **options)
        self.tawin = tawin
        self._check()
        for model in (self.model, self.ref_model):
            if model is not None:
                score_tokens_in_forward(self.accelerator.unwrap_model(model))

    def _check(self) -> None:
        for name, known in _KNOWN_OPTIONS.items():
            value = getattr(self.args, name)
            if value not in known:
                raise ValueError(
                    f"args.{name}: expected {' or '.join(map(repr, known))}, got {value!r}; TAWinGRPOTrainer has no "
                    "such loss, TRL's GRPOTrainer has"
                )
        self._check_clipping()
        if self._is_vlm or self.tools or self.environment_factories is not None or self.aux_loss_enabled:
            raise ValueError(
                "TAWinGRPOTrainer: expected a text model and its tokenizer, got a multimodal processor, tools, an "
                "environment, or a router's auxiliary loss (router_aux_loss_coef=0 turns it off); not supported"
            )
        if self.tawin is not None and not isinstance(self.tawin, TAWin):
            raise TypeError(f"tawin: expected a TAWin or None, got {type(self.tawin).__name__}")
        if self.tawin is not None and self.rollout_func is None:
            raise ValueError("rollout_func: expected beam_rollout(trie), whose scores rank the negatives, got None")
        check_model(self)
        if isinstance(self.rollout_func, BeamRollout):
            self.rollout_func.check(self)

    def _check_clipping(self) -> None:
        """Let the loss see its numbers now: what it refuses, it would refuse in the first step."""
        one = torch.zeros(1, 1, 1)
        try:
            grpo_loss(one, one == 0, one[0], ref_log_probs=one, **self._loss_options())
        except ValueError as error:
            message = str(error).replace("epsilon_low", "epsilon")  # TRL's name
            raise ValueError(f"args.{message}; TAWinGRPOTrainer has no such loss, TRL's GRPOTrainer has") from None

    def _loss_options(self) -> dict[str, Any]:
        """What `grpo_loss` is told besides tensors."""
        return {
            "loss_type": self.loss_type,
            "importance_level": self.importance_sampling_level,
            "epsilon_low": self.epsilon_low,
            "epsilon_high": self.epsilon_high,
            "beta": 0.0 if self.args.use_bias_correction_kl else self.beta,  # else `_corrected_kl`
        }

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*arguments, **options)  # [rows of all processes, functions]
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, and TAWin's weights on the advantages while every group is whole and in order."""
        inputs = [dict(row) for row in inputs]  # TRL writes the rollout's fields into them
        output = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        rewards = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)
        rewards[self._rewards.isnan().all(1)] = torch.nan  # no reward at all: neither positive nor negative
        rewards = rewards.view(-1, group_size)  # [groups of all processes, G]
        metrics["tawin/hit_rate"].append((rewards > 0).any(1).float().mean().item())
        if self.tawin is None:
            return output
        if "beam_scores" not in inputs[0]:
            raise ValueError(
                "rollout_func: expected a field 'beam_scores', a number a row, as of beam_rollout; got none"
            )
        scores = torch.tensor([row["beam_scores"] for row in inputs], device=rewards.device).view(-1, group_size)
        first = self.accelerator.process_index * len(scores)
        weights = tawin_weights(scores, rewards[first : first + len(scores)] <= 0, self.tawin)
        output["advantages"] = output["advantages"] * weights.flatten()
        output["beam_scores"] = scores.flatten()
        output["group_ids"] = torch.arange(len(inputs), device=rewards.device) // group_size + first
        metrics["tawin/largest_weight"].append(self.accelerator.gather(weights.amax(1)).mean().item())
        self._log_advantages(output["advantages"])
        return output

    def _log_advantages(self, advantages: Tensor) -> None:
        """Put them in the place of those that TRL has just noted for its table of completions."""
        noted = self._logs["advantages"]
        for place, advantage in enumerate(reversed(self.accelerator.gather(advantages).tolist()), start=1):
            if place <= len(noted):
                noted[-place] = advantage

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Log p and entropy of the last tokens, fp32 [N, logits_to_keep]; of the old and the reference policy too."""
        token_ids = input_ids.masked_fill(attention_mask == 0, -100)[:, -logits_to_keep:]
        parts = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            rows = slice(start, start + (batch_size or len(input_ids)))
            with self.accelerator.autocast():
                parts.append(
                    model(
                        input_ids=input_ids[rows],
                        attention_mask=attention_mask[rows],
                        scored_token_ids=token_ids[rows],
                        score_temperature=self.temperature,
                    )
                )
        log_probs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        return log_probs, entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"].bool()  # [N, L]
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        rows = self._rows_that_add(inputs["advantages"])
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), dim=1)[rows],
            torch.cat((inputs["prompt_mask"], inputs["completion_mask"]), dim=1)[rows],
            mask.shape[1],
        )
        old = inputs["old_per_token_logps"][rows] if "old_per_token_logps" in inputs else log_probs.detach()
        ref = inputs["ref_per_token_logps"][rows] if self.beta != 0 else None
        denominator = self._denominator(mask, inputs["num_items_in_batch"])
        corrects_kl = ref is not None and self.args.use_bias_correction_kl
        result = grpo_loss(
            log_probs[None],  # [1, rows, L]
            mask[None, rows],
            inputs["advantages"][None, rows],
            old_log_probs=old[None],
            ref_log_probs=None if ref is None else ref[None],
            denominator=denominator,
            **self._loss_options(),
        )
        loss, kl = result.loss, result.kl.expand_as(log_probs)
        if corrects_kl:
            kl = self._corrected_kl(log_probs, old, ref, mask[rows])
            of_rows = kl.sum(1) / mask[rows].sum(1).clamp(min=1) if self.loss_type == "grpo" else kl.sum(1)
            loss = loss + self.beta * of_rows.sum() / denominator
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["entropy"].append(self._mean_of_tokens(entropies, mask[rows]))
        if ref is not None:
            metrics["kl"].append(self._mean_of_tokens(kl.detach(), mask[rows]))
        log_ratio = torch.zeros_like(mask, dtype=log_probs.dtype).index_copy(0, rows, log_probs.detach() - old)
        self._log_ratios(log_ratio, mask, inputs["advantages"])
        return loss

    def _rows_that_add(self, advantages: Tensor) -> Tensor:
        """The rows that add to the loss: without KL, those with an advantage. One at least, so that every process has a
        forward and a backward."""
        live = (advantages != 0).nonzero()[:, 0]
        if self.beta != 0 or len(live) == 0:
            return torch.arange(len(advantages) if self.beta != 0 else 1, device=advantages.device)
        return live

    def _corrected_kl(self, log_probs: Tensor, old: Tensor, ref: Any, mask: Tensor) -> Tensor:
        """k3 times the ratio, through which a gradient flows too (use_bias_correction_kl): [N, L], 0 where masked.

        A value a token, in plain PyTorch: the kernel of the loss knows k3 alone.
        """
        log_ratio = log_probs - old
        if self.importance_sampling_level == "sequence":
            log_ratio = _of_sequences(log_ratio, mask)
        distance = ref - log_probs
        return ((distance.exp() - distance - 1.0) * log_ratio.exp()).masked_fill(~mask, 0.0)

    def _denominator(self, mask: Tensor, num_items_in_batch: Tensor) -> Tensor:
        """What TRL divides the sum of a micro-batch by, so that accumulated gradients are those of the whole batch."""
        micro_batches = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.loss_type in ("dapo", "cispo"):
            tokens = num_items_in_batch.clamp(min=1).float() / self.accelerator.num_processes
            return tokens * micro_batches / self.args.steps_per_generation if self.model.training else tokens
        if self.loss_type == "bnpo":
            return mask.sum().clamp(min=1).float() * micro_batches
        longest = self.max_completion_length if self.loss_type == "dr_grpo" else 1
        return torch.tensor(float(len(mask) * longest * micro_batches), device=mask.device)

    def _mean_of_tokens(self, values: Tensor, mask: Tensor) -> float:
        """Over all processes."""
        totals = torch.stack(((values * mask).sum(), mask.sum().float()))
        total, count = self.accelerator.reduce(totals, reduction="sum").tolist()
        return total / max(count, 1.0)

    def _log_ratios(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor) -> None:
        """TRL's metrics of clipping, of all rows: those that were left out are not clipped."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if self.importance_sampling_level == "sequence":
            log_ratio = _of_sequences(log_ratio, mask)
            mask = torch.ones_like(log_ratio, dtype=torch.bool)
        ratio, advantages = log_ratio.exp(), advantages[:, None]
        if LOSS_KINDS[self.loss_type].caps_ratio:
            clipped = (ratio > self.epsilon_high) & (advantages > 0)
            metrics["cispo_clip_ratio"].append(self._mean_of_tokens(clipped, mask))
            return
        low = (ratio < 1 - self.epsilon_low) & (advantages < 0)
        high = (ratio > 1 + self.epsilon_high) & (advantages > 0)
        for name, clipped in (("low_mean", low), ("high_mean", high), ("region_mean", low | high)):
            metrics[f"clip_ratio/{name}"].append(self._mean_of_tokens(clipped, mask))
        shares = [(clipped & mask).sum(1) / mask.sum(1).clamp(min=1) for clipped in (low, high)]  # of each row
        metrics["clip_ratio/low_min"].append(self.accelerator.gather(shares[0]).min().item())
        metrics["clip_ratio/high_max"].append(self.accelerator.gather(shares[1]).max().item())


def _of_sequences(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's tokens, [N, 1]."""
    return (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
