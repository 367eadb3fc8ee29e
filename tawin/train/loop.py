"""What a training loop is beside its steps: evaluations, the best model, saves, the end; and what the terminal shows.

Every loop goes on from the run folder's state if there is one, and is deterministic: the data order is a function of
seed and epoch, dropout and random completions of seed and step. So on the CPU a run that was stopped and resumed ends
as one that never was; on a GPU as nearly as its kernels repeat themselves.

Nor does the number of processes change an experiment. A forward's batch is dealt out, whole groups at that; what a
prompt draws is drawn for the whole batch; the loss of a step is divided by the whole batch's count; what is logged is
of the whole batch. Only dropout differs: it has a seed a process.
"""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from ..catalog.catalog import Catalog
from ..config import KS, Config
from ..data.dataset import Examples
from ..evaluate.ranking import evaluate, sampled
from ..run.checkpoint import Progress
from ..run.signals import Stopped
from .engine import Stage
from .watchdog import Watchdog


def train_steps(
    stage: Stage,
    catalog: Catalog,
    valid: Examples,
    config: Config,
    step: Callable[[], dict[str, float]],
    steps: int,
    evaluate_every: int,
    *,
    shown: tuple[str, ...],
) -> Progress:
    """Take the stage to `steps` steps; evaluates at its start, every so many steps and at the end, and saves there.

    Args:
        valid: evaluated as `config.evaluation` says, which also chooses the best model.
        step: one step, its update included; the figures that it gives are logged.
        shown: the figures that stand beside the progress bar.
    """
    valid = sampled(valid, config.evaluation.valid_users, config.seed)

    def check() -> None:
        """Evaluate and save where that is due and not done yet."""
        step = stage.progress.step
        if step == stage.progress.evaluated or (step % evaluate_every and step < steps):
            return
        found = evaluate_and_record(stage, catalog, valid, config)
        stage.save(finished=step >= steps)
        say(stage, f"step {step}" if step else "start", found)

    watchdog = Watchdog.of(stage, config)
    check()
    stage.save_or_stop()
    with progress_bar(stage, steps) as bar:
        while stage.progress.step < steps:
            figures = step()
            stage.log(**figures)
            bar.update()
            bar.set_postfix({name: f"{figures[name]:.3f}" for name in shown if name in figures}, refresh=False)
            watchdog.watch(stage, figures)
            check()
            stage.save_or_stop()
    return stage.progress


def evaluate_and_record(stage: Stage, catalog: Catalog, valid: Examples, config: Config) -> dict[str, float]:
    """Figures on valid, recorded. Where a signal cuts it short, the state is saved: it is done again on resuming."""
    stage.require_finite_weights()
    try:
        found = stage.infer(
            lambda model: evaluate(
                model,
                catalog,
                valid,
                config.evaluation,
                description="valid",
                progress=stage.processes.is_first,
                processes=stage.processes,
            )
        )
    except Stopped:
        stage.save()
        raise
    stage.record(found, config.evaluation.select)
    return found


def progress_bar(stage: Stage, total: int) -> tqdm:
    """Of the first process, on a terminal."""
    name, step = stage.progress.stage, stage.progress.step
    disable = None if stage.processes.is_first else True  # None: shown on a terminal, not in a log file
    return tqdm(total=total, initial=step, desc=name, unit="step", mininterval=1.0, disable=disable)


def say(stage: Stage, when: str, found: dict[str, float], loss: float | None = None) -> None:
    """A line on the terminal for an evaluation."""
    recalls = "  ".join(f"R@{k} {found[f'recall@{k}']:.4f}" for k in KS)
    line = f"{stage.progress.stage} {when}: valid {recalls}" + (f"  loss {loss:.3f}" if loss is not None else "")
    if stage.processes.is_first:
        tqdm.write(line)
