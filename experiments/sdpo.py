"""S-DPO: direct preference optimisation with several negatives, from an SFT start.

Chen et al., "On Softmax Direct Preference Optimization for Recommendation", arXiv 2406.09215. Of a prompt H with the
next item Y+ and negatives Y1 .. YM,

    L = -log sigmoid(-log sum_j exp(beta (r_j - r_+))),    r = log pi(Y | H) - log pi_ref(Y | H)

which is the cross-entropy of a softmax over beta r of all M + 1 items with Y+ as the right one; M = 1 is DPO. Log p are
sums over an item's tokens, over the whole vocabulary. Negatives are drawn anew each step, uniformly over the other
token sequences of the catalogue. Of several targets of a user the first is the positive. Runs on one process.

Data order, evaluation, the record of the best model and resuming are the trainer's (`tawin.train.loop`, `Stage`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from tawin_kernels import linear_log_probs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from tawin.catalog.catalog import Catalog
from tawin.config import Config, OptimizerConfig
from tawin.data.dataset import Examples, Split
from tawin.model.backbone import backbone
from tawin.model.token_tree import completion_states
from tawin.rl.step import prompt_rows
from tawin.run.folder import RunFolder
from tawin.run.phases import phase
from tawin.search.completions import random_sequences, score_sequences
from tawin.train.checkpoint import Progress
from tawin.train.engine import Stage
from tawin.train.loop import Loop


@dataclass(frozen=True)
class SDPOOptions(OptimizerConfig):
    """S-DPO; what it shares with the other stages is in OptimizerConfig."""

    learning_rate: float = 1e-4
    batch_size: int = 64
    """Prompts of one forward."""
    steps: int = 100
    beta: float = 1.0
    """How much a log-ratio counts: the higher, the nearer to the reference the policy stays."""
    negatives: int = 3
    """M, negatives a prompt; the paper has 3 to 15."""
    evaluate_every: int = 20
    """Steps between evaluations on valid; the best checkpoint is kept, the start included."""

    _section = "sdpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, is_right, expected in (
            ("steps", self.steps >= 0, "0 or more"),
            ("beta", self.beta > 0, "above 0"),
            ("negatives", self.negatives >= 1, "at least 1"),
            ("evaluate_every", self.evaluate_every >= 1, "at least 1"),
        ):
            if not is_right:
                raise ValueError(f"sdpo.{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Preferences:
    """Prompts, each with its positive and its negatives."""

    input_ids: Tensor  # int64 [B, P], left-padded
    attention_mask: Tensor  # int64 [B, P]
    token_ids: Tensor  # int64 [B, 1 + M, L], -100 = padding; the positive comes first


def train_sdpo(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    options: SDPOOptions,
    run: RunFolder,
) -> Progress:
    """S-DPO on split.rl; the best model by `config.evaluation.select` on valid, or the start, is in checkpoints/sdpo.

    Args:
        model: the SFT start, which is trained.
        reference: the start again; it is frozen.
        catalog: on the accelerator's device.
        config: of it the seed and the evaluation.

    Raises:
        ValueError: several processes, no prompts, the model as its own reference, more negatives than the catalogue has
            sequences.
    """
    if accelerator.num_processes > 1:
        raise ValueError(f"accelerator: expected one process, S-DPO is not dealt out, got {accelerator.num_processes}")
    if options.steps > 0 and len(split.rl) == 0:
        raise ValueError("split.rl: expected at least one prompt, got none (raise split.rl_share)")
    if reference is model:
        raise ValueError("reference: expected a copy of the start, which stays as it is, got the model itself")
    _require_sequences(catalog, options.negatives)
    stage = Stage.start("sdpo", accelerator, model, tokenizer, options, options.steps, run)
    frozen = reference.to(accelerator.device).eval().requires_grad_(False)
    shown = ("loss", "margin")
    with Loop(stage, catalog, split.valid, config, options.steps, options.evaluate_every, shown=shown) as loop:
        while loop.goes_on():
            loop.took(sdpo_step(stage, frozen, catalog, split.rl, config.seed, options))
    return stage.progress


def sdpo_step(
    stage: Stage, reference: nn.Module, catalog: Catalog, prompts: Examples, seed: int, options: SDPOOptions
) -> dict[str, float]:
    """One step on its batch of the prompts, without dropout.

    Returns:
        The loss, the margin (mean of r_+ less the mean r_j), the share of prompts with r_+ above every r_j, the norm
        of the gradient and the learning rate.
    """
    step, size = stage.progress.step, options.batch_size
    rows = prompt_rows(len(prompts), seed, step, size * options.gradient_accumulation)
    stage.model.eval()  # no dropout, as the reference has none: r starts at 0
    drawn = np.random.SeedSequence((seed, 2, step)).generate_state(1)[0]
    generator = torch.Generator(stage.processes.device).manual_seed(int(drawn))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    totals = torch.zeros(3, dtype=torch.float64, device=stage.processes.device)
    for index, part in enumerate(parts):
        preferences = draw_preferences(catalog, prompts.take(part), options.negatives, generator)
        arguments = (preferences, reference, options.beta, len(rows))
        totals += torch.stack(stage.backward(preference_loss, *arguments, is_last=index == len(parts) - 1)).double()
    loss, margin, wins = totals.tolist()
    rate = stage.scheduler.get_last_lr()[0]
    return {"loss": loss, "margin": margin, "wins": wins, "grad_norm": stage.update(), "learning_rate": rate}


def draw_preferences(catalog: Catalog, examples: Examples, negatives: int, generator: torch.Generator) -> Preferences:
    """The examples' prompts with their targets and `negatives` distinct sequences each, none of them the target's.

    catalog and generator are on one device, and so is the result.
    """
    _require_sequences(catalog, negatives)
    device = catalog.token_ids.device
    input_ids, attention_mask = catalog.encode_histories(examples.histories)
    targets = torch.as_tensor(examples.targets, device=device)
    # One more than wanted, so that one can go: the positive where it was drawn, else the last.
    drawn = random_sequences(catalog.trie, catalog.token_ids, len(targets), negatives + 1, generator=generator)
    is_target = drawn.nodes == catalog.item_nodes[targets][:, None]  # bool [B, M + 1]
    kept = is_target.byte().argsort(dim=1, stable=True)[:, :negatives]  # int64 [B, M]
    others = drawn.token_ids.gather(1, kept[..., None].expand(-1, -1, drawn.token_ids.shape[2]))  # [B, M, L]
    positives = catalog.token_ids[targets][:, None]  # [B, 1, L]
    token_ids = torch.cat((positives.masked_fill(positives < 0, -100), others), dim=1)
    return Preferences(input_ids.to(device), attention_mask.to(device), token_ids)


def log_ratios(model: nn.Module, reference: nn.Module, preferences: Preferences) -> Tensor:
    """r of every item, fp32 [B, 1 + M]; differentiable in the model, not in the reference."""
    sequences = (preferences.input_ids, preferences.attention_mask, preferences.token_ids)
    with phase("reference"):
        of_reference = score_sequences(reference, *sequences)
    with phase("policy_forward"):
        parts = backbone(model)
        states, rows = completion_states(parts, *sequences)
        weight, bias = parts.head_in(states.dtype)
    with phase("loss"):
        log_probs = linear_log_probs(states, weight, preferences.token_ids, bias=bias, rows=rows)  # [B, 1 + M, L]
    return log_probs.sum(-1) - of_reference


def sdpo_losses(ratios: Tensor, beta: float) -> Tensor:
    """L of each prompt, [B], of its log-ratios r [B, 1 + M], the positive's first."""
    return cross_entropy(beta * ratios, ratios.new_zeros(len(ratios), dtype=torch.int64), reduction="none")


def preference_loss(
    model: nn.Module, preferences: Preferences, reference: nn.Module, beta: float, prompts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over these prompts, divided by all `prompts` of the step, of loss, margin and wins."""
    ratios = log_ratios(model, reference, preferences)
    positive, negatives = ratios[:, 0], ratios[:, 1:]
    margins = positive - negatives.mean(1)
    wins = (positive > negatives.amax(1)).to(ratios.dtype)
    return sdpo_losses(ratios, beta).sum() / prompts, margins.sum() / prompts, wins.sum() / prompts


def _require_sequences(catalog: Catalog, negatives: int) -> None:
    others = len(catalog.trie.leaf_of_item.unique()) - 1
    if negatives > others:
        raise ValueError(
            f"sdpo.negatives: expected at most {others}, the catalogue's other sequences beside a positive, got "
            f"{negatives}"
        )
