"""The two training loops, supervised fine-tuning and GRPO. Each goes on from the run folder's state if there is one.

Both are deterministic: the data order is a function of seed and epoch, random completions of seed and step, and the
random state of dropout is part of the saved state. So on the CPU a run that was stopped and resumed ends as one that
never was; on a GPU as nearly as its kernels repeat themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from tawin_kernels import linear_log_probs
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .backbone import backbone
from .catalog import Catalog
from .checkpoint import Progress
from .config import KS, Config
from .data import Examples, Split, training_windows
from .evaluate import evaluate, sampled
from .objective import Groups, completion_log_probs, group_loss, loss_denominator, roll_out
from .optimization import Stage
from .policy import evaluating
from .run_folder import RunFolder

Reference = Callable[[Groups], Tensor]


def train_sft(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> Progress:
    """Next-item cross-entropy, one sequence a user with a loss on every item that has a history.

    Stops early where valid recall has not risen for `sft.patience` evaluations. The best model is in checkpoints/sft.
    """
    windows, first_targets = training_windows(split.sft, config.split.max_history)
    sft = config.sft
    per_step = sft.batch_size * sft.gradient_accumulation
    steps_an_epoch = -(-len(windows) // per_step)
    total = min(steps_an_epoch * sft.epochs, sft.max_steps or steps_an_epoch * sft.epochs)
    stage = Stage.start("sft", accelerator, model, tokenizer, sft, total, run)
    valid = sampled(split.valid, config.evaluation.valid_users, config.seed)
    lengths = np.array([len(window) for window in windows])

    with tqdm(total=total, initial=stage.progress.step, desc="sft", unit="step", mininterval=1.0) as bar:
        first_epoch = stage.progress.step // steps_an_epoch if steps_an_epoch else sft.epochs
        for epoch in range(first_epoch, sft.epochs):
            if stage.progress.step >= total or stage.progress.stale >= sft.patience:
                break
            stage.model.train()
            for rows in _epoch_batches(lengths, per_step, np.random.default_rng((config.seed, 0, epoch))):
                rate = stage.scheduler.get_last_lr()[0]
                loss, norm = _sft_step(stage, catalog, windows, first_targets, rows, sft.batch_size)
                stage.log(loss=loss, learning_rate=rate, grad_norm=norm, epoch=epoch + 1)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if stage.progress.step == total:
                    break
            if (epoch + 1) % sft.evaluate_every == 0 or stage.progress.step == total:
                found = evaluate(stage.model, catalog, valid, config.evaluation, description="valid", progress=True)
                stage.record(found, config.evaluation.select)
                stage.save(finished=stage.progress.step == total or stage.progress.stale >= sft.patience)
                tqdm.write(_evaluation_line("sft", f"epoch {epoch + 1}", found, loss))
    if stage.progress.best_step < 0:  # no epochs at all: the start itself
        stage.record(evaluate(stage.model, catalog, valid, config.evaluation), config.evaluation.select)
        stage.save(finished=True)
    return stage.progress


def _sft_step(
    stage: Stage, catalog: Catalog, windows: list[np.ndarray], first_targets: list[int], rows: np.ndarray, size: int
) -> tuple[float, float]:
    """One optimizer step over `rows`, `size` sequences a forward; returns loss (nats a token) and gradient norm."""
    batches = []
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        batches.append(catalog.encode_windows([windows[row] for row in chosen], [first_targets[row] for row in chosen]))
    tokens = sum(int((labels >= 0).sum()) for _, _, labels in batches)
    loss_sum = 0.0
    device = stage.accelerator.device
    for input_ids, attention_mask, labels in batches:
        parts = backbone(stage.model)
        with stage.accelerator.autocast():
            hidden = parts.decoder(
                input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False
            ).last_hidden_state  # [B, S, H]
            weight, bias = parts.head_in(hidden.dtype)
            log_probs = linear_log_probs(hidden[:, :-1], weight, labels[:, 1:].to(device), bias=bias)
        loss = -log_probs.sum() / tokens
        stage.accelerator.backward(loss)
        loss_sum += float(loss.detach())
    return loss_sum, stage.update()


def _epoch_batches(lengths: np.ndarray, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Every row once, in batches of sequences of like length (little padding), in random order."""
    order = random.permutation(len(lengths))
    pool = 16 * size
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + size] for i in range(0, len(rows), size)]
    for index in random.permutation(len(batches)):
        yield batches[index]


def train_grpo(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> Progress:
    """Group-relative policy optimisation with TAWin weights; the best model, or the start, is in checkpoints/grpo.

    `reference` is the frozen model of the KL term. None with beta > 0: the peft model with its adapters switched off.
    """
    grpo = config.grpo
    stage = Stage.start("grpo", accelerator, model, tokenizer, grpo, grpo.steps, run)
    valid = sampled(split.valid, config.evaluation.valid_users, config.seed)
    reference_log_probs = _reference(stage, reference) if grpo.beta > 0 else None

    def check() -> dict[str, float]:
        found = evaluate(stage.model, catalog, valid, config.evaluation, description="valid", progress=True)
        stage.record(found, config.evaluation.select)
        stage.save(finished=stage.progress.step >= grpo.steps)
        return found

    if stage.progress.best_step < 0:
        tqdm.write(_evaluation_line("grpo", "start", check()))
    with tqdm(total=grpo.steps, initial=stage.progress.step, desc="grpo", unit="step", mininterval=1.0) as bar:
        while stage.progress.step < grpo.steps:
            figures = _grpo_step(stage, catalog, split.rl, config, reference_log_probs)
            stage.log(**figures)
            bar.update()
            bar.set_postfix(reward=f"{figures['reward']:.3f}", live=f"{figures['live_share']:.2f}", refresh=False)
            step = stage.progress.step
            if step % grpo.evaluate_every == 0 or step == grpo.steps:
                tqdm.write(_evaluation_line("grpo", f"step {step}", check()))
    return stage.progress


def _grpo_step(
    stage: Stage, catalog: Catalog, prompts: Examples, config: Config, reference: Reference | None
) -> dict[str, float]:
    """Roll out, drop dead groups, backward, update; returns the figures of the step."""
    grpo, device = config.grpo, stage.accelerator.device
    stage.model.train()
    seed = np.random.SeedSequence((config.seed, 2, stage.progress.step)).generate_state(1)[0]
    generator = torch.Generator(device).manual_seed(int(seed))
    batches: list[Groups] = []
    for micro in range(grpo.gradient_accumulation):
        rows = _prompt_rows(
            len(prompts), config.seed, stage.progress.step * grpo.gradient_accumulation + micro, grpo.batch_size
        )
        chosen = prompts.take(rows)
        input_ids, attention_mask = catalog.encode_histories(chosen.histories)
        targets = torch.as_tensor(chosen.targets, device=device)
        with stage.accelerator.autocast():
            batches.append(
                roll_out(
                    stage.model, catalog, input_ids.to(device), attention_mask.to(device), targets, grpo, generator
                )
            )

    denominator = loss_denominator(batches, grpo.loss_type)
    loss = kl = clipped = tokens = 0.0
    for groups in batches:
        trained = groups if grpo.beta > 0 else groups.take(groups.live.nonzero()[:, 0])
        if len(trained.rewards) == 0:
            continue
        with stage.accelerator.autocast():
            result = group_loss(stage.model, reference, trained, grpo, denominator)
        stage.accelerator.backward(result.loss)
        count = float(trained.mask.sum())
        loss += float(result.loss.detach())
        kl += float(result.kl) * count
        clipped += float(result.clip_fraction) * count
        tokens += count
    rate = stage.scheduler.get_last_lr()[0]
    norm = stage.update()
    prompts_seen = sum(len(groups.rewards) for groups in batches)
    return {
        "loss": loss,
        "reward": sum(float(groups.rewards.sum()) for groups in batches) / (prompts_seen * grpo.group_size),
        "hit_share": sum(int(groups.hits.sum()) for groups in batches) / prompts_seen,
        "live_share": sum(int(groups.live.sum()) for groups in batches) / prompts_seen,
        "kl": kl / tokens if tokens else 0.0,
        "clip_fraction": clipped / tokens if tokens else 0.0,
        "grad_norm": norm,
        "learning_rate": rate,
    }


def _prompt_rows(prompts: int, seed: int, batch: int, size: int) -> np.ndarray:
    """Rows of batch number `batch` in the endless sequence of shuffled epochs."""
    positions = np.arange(batch * size, (batch + 1) * size)
    epochs = positions // prompts
    orders = {epoch: np.random.default_rng((seed, 1, int(epoch))).permutation(prompts) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][position % prompts] for epoch, position in zip(epochs, positions, strict=True)])


def _reference(stage: Stage, reference: nn.Module | None) -> Reference:
    """Log-probs under the frozen start: a model of its own, or the policy with its adapters switched off."""
    if reference is not None:
        frozen = reference.to(stage.accelerator.device).eval().requires_grad_(False)
        return lambda groups: completion_log_probs(frozen, groups)
    model = stage.accelerator.unwrap_model(stage.model)

    def without_adapters(groups: Groups) -> Tensor:
        with evaluating(model), model.disable_adapter():  # no dropout in the reference
            return completion_log_probs(model, groups)

    return without_adapters


def _evaluation_line(stage: str, when: str, found: dict[str, float], loss: float | None = None) -> str:
    recalls = "  ".join(f"R@{k} {found[f'recall@{k}']:.4f}" for k in KS)
    return f"{stage} {when}: valid {recalls}" + (f"  loss {loss:.3f}" if loss is not None else "")
