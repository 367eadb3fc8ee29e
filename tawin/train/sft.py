"""Supervised fine-tuning: the next item's tokens by cross-entropy, until valid says that it is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..config import Config, SFTConfig
from ..data.dataset import Split, target_windows, training_windows
from ..data.ragged import Ragged
from ..evaluate.ranking import decided, sampled
from ..model.attention.causal import causal_log_probs
from ..run.checkpoint import Progress
from ..run.folder import RunFolder
from .engine import Stage
from .findings import look_into_windows
from .loop import evaluate_and_record, progress_bar, say

FULL_SOFTMAX = 8192  # tokens of the catalogue over which the whole softmax is quick enough on a CPU


def train_sft(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> Progress:
    """Next-item cross-entropy, one sequence a user with a loss on every item that has a history; one sequence an item
    where prompts have text between or behind their items.

    Stops early where valid recall has not risen for `sft.patience` evaluations. The best model is in checkpoints/sft.
    """
    config = decided(config, split)
    windows, first_targets = sft_windows(catalog, split, config)
    sft = config.sft
    per_step = sft.batch_size * sft.gradient_accumulation
    steps_an_epoch, total = sft_steps(len(windows), sft)
    stage = Stage.start("sft", accelerator, model, tokenizer, sft, total, run, config.guards, config.checkpoints)
    valid = sampled(split.valid, config.evaluation.valid_users, config.seed)

    def check(loss: float | None = None) -> None:
        """Evaluate and save where that is due and not done yet; with no step at all, the start itself."""
        step = stage.progress.step
        is_due = step == total or (step > 0 and step % (sft.evaluate_every * steps_an_epoch) == 0)
        if step == stage.progress.evaluated or not is_due:
            return
        found = evaluate_and_record(stage, catalog, valid, config)
        stage.save(finished=step == total or stage.progress.stale >= sft.patience)
        if total > 0:
            say(stage, f"epoch {-(-step // steps_an_epoch)}", found, loss)

    check()  # one that a signal cut short
    with progress_bar(stage, total) as bar:
        while stage.progress.step < total and stage.progress.stale < sft.patience:
            epoch, done = divmod(stage.progress.step, steps_an_epoch)
            batches = epoch_batches(windows.lengths, per_step, np.random.default_rng((config.seed, 0, epoch)))
            for rows in islice(batches, done, None):
                figures = sft_step(stage, catalog, windows, first_targets, rows, config)
                stage.log(**figures, epoch=epoch + 1)
                bar.update()
                bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
                check(figures["loss"])
                stage.save_or_stop()
                if stage.progress.step == total:
                    break
    return stage.progress


def sft_windows(catalog: Catalog, split: Split, config: Config) -> tuple[Ragged, np.ndarray]:
    """The sequences of an epoch, and the index of the first target in each."""
    cut = target_windows if catalog.one_target else training_windows
    return cut(split.sft, config.split.max_history)


def sft_steps(windows: int, sft: SFTConfig) -> tuple[int, int]:
    """Steps of an epoch, and in all where it is not stopped early."""
    steps_an_epoch = -(-windows // (sft.batch_size * sft.gradient_accumulation))
    return steps_an_epoch, min(steps_an_epoch * sft.epochs, sft.max_steps or steps_an_epoch * sft.epochs)


def sft_negatives(catalog: Catalog, config: Config) -> int:
    """Tokens that estimate the softmax's sum in a step; 0: all. What `sft.negatives` says, or where it says nothing,
    1,024 for the small decoder over a vocabulary of more than `FULL_SOFTMAX` tokens."""
    if config.sft.negatives is not None:
        return config.sft.negatives
    return 1024 if config.model is None and len(catalog.trie.used_tokens) > FULL_SOFTMAX else 0


def sft_step(
    stage: Stage, catalog: Catalog, windows: Ragged, first_targets: np.ndarray, rows: np.ndarray, config: Config
) -> dict[str, float]:
    """One step on some of the windows, its update included; gives its figures."""
    stage.model.train()
    rate = stage.scheduler.get_last_lr()[0]
    stage.seed(config.seed)
    loss = _backward(stage, catalog, windows, first_targets, rows, config)
    own = rows[stage.processes.share(len(rows))]
    look = partial(
        look_into_windows, catalog=catalog, windows=windows, first_targets=first_targets, rows=own, config=config
    )
    norm = stage.update(figures={"loss": loss}, look=look)
    return {"loss": loss, "learning_rate": rate, "grad_norm": norm}


def _backward(
    stage: Stage,
    catalog: Catalog,
    windows: Ragged,
    first_targets: np.ndarray,
    rows: np.ndarray,
    config: Config,
) -> float:
    """Forward and backward of one step over `rows`, sft.batch_size sequences a forward; the loss, nats a token."""
    batches, size = [], config.sft.batch_size
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        own = chosen[stage.processes.share(len(chosen))]
        kept = own if len(own) else chosen[:1]  # a process that has no row runs one for company
        input_ids, attention_mask, labels = catalog.encode_windows(windows.take(kept), first_targets[kept])
        batches.append((input_ids, attention_mask, labels if len(own) else torch.full_like(labels, -100)))
    (tokens,) = stage.processes.sums(sum(int((labels >= 0).sum()) for _, _, labels in batches))
    negatives = sft_negatives(catalog, config)
    losses = [
        stage.backward(
            window_loss(batch, tokens, stage.accelerator.device, config.attention, negatives),
            is_last=index == len(batches) - 1,
        )[0]
        for index, batch in enumerate(batches)
    ]
    (loss,) = stage.processes.sums(torch.stack(losses).sum())
    return loss


def window_loss(
    batch: tuple[Tensor, Tensor, Tensor], tokens: float, device: torch.device, attention: str, negatives: int = 0
) -> Callable[[nn.Module], tuple[Tensor]]:
    """Of a model: the cross-entropy of a batch [B, S] over the labels that are not -100, divided by `tokens`."""
    input_ids, attention_mask, labels = (part.to(device) for part in batch)

    def loss(model: nn.Module) -> tuple[Tensor]:
        _, log_probs = causal_log_probs(model, input_ids, attention_mask, labels, attention, negatives)
        return (-log_probs.sum() / tokens,)

    return loss


def epoch_batches(lengths: np.ndarray, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
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
