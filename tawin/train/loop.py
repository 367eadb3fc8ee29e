"""What a training loop is beside its steps: evaluations, the best model, saves, the end; and what the terminal shows.

Every loop goes on from the run folder's state if there is one, and is deterministic: the data order is a function of
seed and epoch, dropout and random completions of seed and step. So on the CPU a run that was stopped and resumed ends
as one that never was; on a GPU as nearly as its kernels repeat themselves.

Nor does the number of processes change an experiment. A forward's batch is dealt out, whole groups at that; what a
prompt draws is drawn for the whole batch; the loss of a step is divided by the whole batch's count; what is logged is
of the whole batch. Only dropout differs: it has a seed a process.
"""

from __future__ import annotations

from typing import Self

from tqdm import tqdm

from ..catalog.catalog import Catalog
from ..config import KS, Config
from ..data.dataset import Examples
from ..evaluate.ranking import evaluate, sampled
from ..run.signals import Stopped
from .engine import Stage


class Loop:
    """The one loop of SFT, GRPO and S-DPO, around the steps that its caller takes:

        with Loop(stage, catalog, valid, config, steps, evaluate_every, shown=("loss",)) as loop:
            while loop.goes_on():
                loop.took(step(...))

    It evaluates every `evaluate_every` steps and at the end, and saves there and where `checkpoints` says.
    """

    def __init__(
        self,
        stage: Stage,
        catalog: Catalog,
        valid: Examples,
        config: Config,
        steps: int,
        evaluate_every: int,
        *,
        shown: tuple[str, ...],
        evaluates_start: bool = True,
        patience: int | None = None,
        steps_an_epoch: int | None = None,
    ) -> None:
        """
        Args:
            valid: evaluated as `config.evaluation` says, which also chooses the best model.
            shown: the figures that stand beside the progress bar.
            evaluates_start: whether the start itself may be the best; where there is no step it is anyway.
            patience: end after so many evaluations that were no better; None: never.
            steps_an_epoch: the terminal counts epochs, of so many steps.
        """
        self._stage, self._catalog, self._config = stage, catalog, config
        self._valid = sampled(valid, config.evaluation.valid_users, config.seed)
        self._steps, self._evaluate_every, self._shown = steps, evaluate_every, shown
        self._evaluates_start, self._patience, self._steps_an_epoch = evaluates_start, patience, steps_an_epoch
        self._loss: float | None = None
        self._has_checked = False

    def __enter__(self) -> Self:
        name, step = self._stage.progress.stage, self._stage.progress.step
        disable = None if self._stage.processes.is_first else True  # None: shown on a terminal, not in a log file
        self._bar = tqdm(total=self._steps, initial=step, desc=name, unit="step", mininterval=1.0, disable=disable)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def goes_on(self) -> bool:
        """Whether another step is to be taken. Before it answers: evaluates and saves where that is due.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        starts = not self._has_checked
        self._has_checked = True
        self._evaluate_where_due()
        if not starts or self._evaluates_start:
            self._stage.save_or_stop()
        return not self._is_done

    def took(self, figures: dict[str, float]) -> None:
        """A step was taken: its figures are logged and shown."""
        self._stage.log(**figures)
        self._loss = figures.get("loss") if self._steps_an_epoch else None
        self._bar.update()
        self._bar.set_postfix({name: f"{figures[name]:.3f}" for name in self._shown if name in figures}, refresh=False)

    @property
    def _is_done(self) -> bool:
        progress = self._stage.progress
        return progress.step >= self._steps or (self._patience is not None and progress.stale >= self._patience)

    def _evaluate_where_due(self) -> None:
        stage, step = self._stage, self._stage.progress.step
        is_due = step >= self._steps or (step % self._evaluate_every == 0 and (step > 0 or self._evaluates_start))
        if step == stage.progress.evaluated or not is_due:
            return
        found = self._evaluate()
        stage.save(finished=self._is_done)
        if self._steps_an_epoch is None:
            self._say(f"step {step}" if step else "start", found)
        elif self._steps > 0:
            self._say(f"epoch {-(-step // self._steps_an_epoch)}", found)

    def _evaluate(self) -> dict[str, float]:
        """Figures on valid, recorded. Where a signal cuts it short, the state is saved: resuming does it again.

        Where nobody is in valid there are none, and the model is kept as it is.
        """
        stage, config = self._stage, self._config
        stage.require_finite_weights()
        if len(self._valid) == 0:
            stage.record({}, config.evaluation.select)
            return {}
        try:
            found = stage.infer(
                evaluate,
                self._catalog,
                self._valid,
                config.evaluation,
                description="valid",
                progress=stage.processes.is_first,
                processes=stage.processes,
            )
        except Stopped:
            stage.save()
            raise
        stage.record(found, config.evaluation.select)
        return found

    def _say(self, when: str, found: dict[str, float]) -> None:
        """A line on the terminal for an evaluation."""
        recalls = "  ".join(f"R@{k} {found[f'recall@{k}']:.4f}" for k in KS) if found else "nobody"
        line = f"{self._stage.progress.stage} {when}: valid {recalls}"
        line += f"  loss {self._loss:.3f}" if self._loss is not None else ""
        if self._stage.processes.is_first:
            tqdm.write(line)
