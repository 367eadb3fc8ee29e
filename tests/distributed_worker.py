"""What test_distributed.py runs: one process's part, under torchrun, and the same work with one process.

    torchrun --nproc-per-node 2 -m tests.distributed_worker START OUT is_refused
    torchrun --nproc-per-node 2 -m tests.distributed_worker START OUT dies

First it does all that should work, then that which should end the command.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.cli import train
from tawin.config import Config, EvaluationConfig, GRPOConfig, PolicyConfig, SFTConfig
from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged
from tawin.evaluate.ranking import recommend
from tawin.rl import step as grpo
from tawin.rl.groups import Groups
from tawin.rl.rebalance import balanced
from tawin.rl.step import grpo_backward
from tawin.run.folder import RunFolder
from tawin.run.processes import Processes, make_accelerator, whole
from tawin.search.completions import beam_sequences
from tawin.train import pipeline
from tawin.train.engine import Stage
from tawin.train.sft import _backward as sft_backward

from .small_runs import SMALL
from .tawin.models import tiny_model
from .tawin.small_groups import small_catalog

# Several forwards a step; evaluations that do not part evenly, neither in batches nor in users.
OPTIONS = [
    *SMALL,
    "--policy.layers=2",
    "--sft.gradient-accumulation=2",
    "--grpo.batch-size=4",
    "--grpo.gradient-accumulation=2",
    "--grpo.learning-rate=1e-2",
    "--evaluation.valid-users=19",
    "--evaluation.batch-size=8",
]
# What else an engine has to get right. With beta > 0 and one forward a step a loss goes on from the rollout's prompts.
ENGINE_OPTIONS = {
    DistributedType.MULTI_CPU: [
        "--policy.lora-rank=2",
        "--grpo.beta=0.05",
        "--grpo.gradient-accumulation=1",
        "--grpo.negatives=sample",
        "--grpo.ensure-positive",
    ],
    DistributedType.FSDP: [
        "--policy.checkpoint-activations",
        "--grpo.beta=0.05",
        "--grpo.gradient-accumulation=1",
        "--grpo.negatives=random",
        "--grpo.ensure-positive",
    ],
}
GUARDED = ["--guards.nonfinite=skip", "--guards.max-skips=1", "--grpo.steps=6", "--sft.epochs=1"]
HISTORIES = [np.array(h) for h in ([0], [1, 2, 3], [5, 6], [4], [2, 0, 1, 3])]


class StoppedError(Exception):
    """A run was stopped, as by a user."""


def run_until(updates: int, arguments: list[str]) -> None:
    """A run that is stopped before update number `updates`."""
    update, done = Stage.update, []

    def update_or_stop(stage: Stage, **ends_step: bool) -> float:
        if len(done) == updates:
            raise StoppedError
        done.append(stage.progress.step)
        return update(stage, **ends_step)

    with patch.object(Stage, "update", update_or_stop):
        try:
            train.main(arguments)
        except StoppedError:
            return
    raise AssertionError("the run ended before it was stopped")


def recommendations(processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    """Of five users in three batches."""
    config = EvaluationConfig(beam_width=10, batch_size=2, exclude_history="no")
    found = recommend(tiny_model("qwen2", seed=2), small_catalog(), HISTORIES, config, processes=processes)
    return found.items, found.scores


def stage_of(accelerator: Accelerator, folder: Path, config: Config) -> Stage:
    processes = Processes.of(accelerator)
    processes.ask_first(lambda: RunFolder.create(folder, config))
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    run = RunFolder(folder, writes=processes.is_first)
    return Stage.start("grpo", accelerator, tiny_model("qwen2", seed=2), tokenizer, config.grpo, 10, run)


def gradients_of(stage: Stage) -> dict[str, torch.Tensor]:
    gradients = whole(((name, p.grad) for name, p in stage.model.named_parameters()), stage.processes)
    stage.engine.zero_grad()
    return {name: gradient.cpu().clone() for name, gradient in gradients.items()}


def step_with_dead_groups(stage: Stage, config: Config) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Figures and gradients of four forwards of two prompts: (live, dead), (dead, live) twice, (dead, dead).

    With two processes one has nothing to train in each of the first three. The live group of the second stays where it
    was rolled out, that of the third is dealt to the other process.
    """
    catalog, group = small_catalog(), config.grpo.group_size
    prompts = catalog.encode_histories(HISTORIES)
    found = beam_sequences(tiny_model("qwen2", seed=2), *prompts, catalog.trie, group).nodes  # [5, G]
    is_found = (catalog.item_nodes[None, :, None] == found[:, None]).any(2).long()  # [5, items]
    live, dead = is_found.argmax(1).numpy(), is_found.argmin(1).numpy()  # targets in the group and beyond it
    users = [0, 1, 1, 0, 1, 0, 2, 3]
    targets = [live[0], dead[1], dead[1], live[0], dead[1], live[0], dead[2], dead[3]]
    chosen = Examples(np.arange(8), [HISTORIES[user] for user in users], np.array(targets))
    figures = grpo_backward(stage, catalog, chosen, config, None)
    return figures, gradients_of(stage)


def guarded(out: Path, processes: Processes) -> list[int]:
    """Exit statuses of a run in which the last process alone has a loss of NaN, in steps 2 and 4 and 5 of GRPO."""
    group_loss, seed = grpo.group_loss, Stage.seed
    at = [0]

    def noted(stage: Stage, number: int) -> None:
        at[0] = stage.progress.step + 1
        seed(stage, number)

    def wrong(*arguments: Any) -> Any:
        found = group_loss(*arguments)
        is_wrong = processes.rank == processes.count - 1 and at[0] in (2, 4, 5)
        return found._replace(loss=found.loss * torch.nan) if is_wrong else found

    status = 0
    with patch.object(Stage, "seed", noted), patch.object(grpo, "group_loss", wrong):
        try:
            train.main([*OPTIONS, *GUARDED, "--out", str(out)])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else -1
    return processes.gather(status)


def dealt_out(processes: Processes) -> list[int]:
    """How many groups this process trains on, of 5 live ones that the first process has and 1 that the last has."""
    live, count = torch.tensor([[1.0, 0.0]]), 5 if processes.is_first else 1
    groups = Groups(
        input_ids=torch.full((count + 1, 3 + processes.rank), 7),
        attention_mask=torch.ones(count + 1, 3 + processes.rank, dtype=torch.int64),
        token_ids=torch.full((count + 1, 2, 2), 5),
        rewards=torch.cat((live.expand(count, -1), torch.zeros(1, 2))),
        scores=torch.zeros(count + 1, 2),
        hits=torch.ones(count + 1, dtype=torch.bool),
    )
    dealt = balanced([groups, groups.take(torch.arange(1))], processes)
    assert all(bool(part.live.all()) for part in dealt)
    assert all(bool((part.input_ids == 7 * part.attention_mask).all()) for part in dealt)
    return [len(part.rewards) for part in dealt]


def step_on_three_windows(stage: Stage) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of SFT forwards of two windows and of one: there one of two processes has none."""
    windows = Ragged.of([np.array(window) for window in ([0, 1, 2], [3, 4], [5, 6, 1, 0])])
    config = Config(sft=SFTConfig(batch_size=2))
    loss = sft_backward(stage, small_catalog(), windows, np.ones(3, dtype=np.int64), np.arange(3), config)
    return loss, gradients_of(stage)


STEP_CONFIG = Config(
    sft=SFTConfig(batch_size=2), grpo=GRPOConfig(batch_size=2, gradient_accumulation=4, group_size=4, loss_type="dapo")
)


def steps(accelerator: Accelerator, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[str]]:
    """Figures and gradients of both kinds of step, and the modules that FSDP2 shards."""
    stage = stage_of(accelerator, folder, STEP_CONFIG)
    figures, gradients = step_with_dead_groups(stage, STEP_CONFIG)
    loss, sft_gradients = step_on_three_windows(stage)
    gradients = {f"grpo.{name}": gradient for name, gradient in gradients.items()}
    gradients |= {f"sft.{name}": gradient for name, gradient in sft_gradients.items()}
    sharded = [name for name, module in stage.engine.named_modules() if isinstance(module, FSDPModule)]
    return {**figures, "sft_loss": loss}, gradients, sharded


def refusals(accelerator: Accelerator) -> list[str]:
    """What this engine is said not to fit."""
    messages = []
    for config in (Config(grpo=GRPOConfig(batch_size=7)), Config(policy=PolicyConfig(lora_rank=2))):
        try:
            train.require_engine_fits(config, accelerator)
        except ValueError as error:
            messages.append(str(error))
    return messages


def checks(start: Path, out: Path) -> None:
    """Everything that one start of two processes can show; `start` is a run that one process was stopped in."""
    accelerator = make_accelerator()
    processes = Processes.of(accelerator)
    train.main([*OPTIONS, "--out", str(out / "run")])
    pipeline.write_report = lambda _, out: out / "report.html"  # drawn once is enough

    train.main([*OPTIONS, *ENGINE_OPTIONS[accelerator.distributed_type], "--out", str(out / "other")])

    run_until(7, [*OPTIONS, "--out", str(out / "stopped")])
    processes.ask_first(lambda: shutil.copytree(out / "stopped", out / "for_one"))
    processes.ask_first(lambda: shutil.copytree(start, out / "from_one"))
    for name in ("stopped", "from_one"):
        train.main(["--out", str(out / name), "--resume"])

    items, scores = recommendations(processes)
    np.savez(out / f"recommendations.{processes.rank}.npz", items=items, scores=scores)
    dealt = processes.gather(dealt_out(processes))
    statuses = guarded(out / "guarded", processes)
    figures, gradients, sharded = steps(accelerator, out / "steps")
    if processes.is_first:
        save_file(gradients, out / "gradients.safetensors")
        record = {"figures": figures, "sharded": sharded, "dealt": dealt, "refusals": refusals(accelerator)}
        record["statuses"] = statuses
        (out / "record.json").write_text(json.dumps(record))


def dies(_: Path, out: Path) -> None:
    """The second process fails in the middle of training, the first one waits for it in a collective."""
    update = Stage.update

    def fail(stage: Stage, **ends_step: bool) -> float:
        if stage.processes.rank == 1 and stage.progress.step == 2:
            raise RuntimeError("the second process has failed")
        return update(stage, **ends_step)

    with patch.object(Stage, "update", fail):
        train.main([*OPTIONS, "--out", str(out / "died")])


def is_refused(start: Path, _: Path) -> None:
    train.main([*OPTIONS, "--out", str(start)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, out = map(Path, sys.argv[1:3])
    checks(start, out)
    {"is_refused": is_refused, "dies": dies}[sys.argv[3]](start, out)
