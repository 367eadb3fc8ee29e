"""Runs the threads of a batch of programs: the lowest block first, so that those who went different ways meet again.

Where an instruction needs the whole warp, its threads wait for each other; at a barrier they wait for their program.
Most kernels keep all threads together, and blocks then run without masks.
"""

from __future__ import annotations

import numpy as np

from .programs import Programs
from .translate import DONE, Block, Translated
from .values import Array, Fault, Mask


def run(kernel: Translated, programs: Programs) -> None:
    """Until all threads are done; Fault with the place in the source where something goes wrong."""
    with np.errstate(all="ignore"):
        _Threads(kernel, programs).run()


class _Threads:
    def __init__(self, kernel: Translated, programs: Programs) -> None:
        self.kernel, self.programs = kernel, programs
        self.at = np.zeros(programs.count, np.int32)  # the block that a thread is to run
        self.is_parked = np.zeros(programs.count, bool)

    def run(self) -> None:
        number = 0
        while number != DONE:
            left = self._run_together(number)
            if left is None:
                return
            self.at = left
            number = self._run_apart()

    def _run_together(self, number: int) -> Array | None:
        """From a block that all are at: until they part, where each goes; None when all are done."""
        blocks, programs = self.kernel.blocks, self.programs
        everyone = np.ones(programs.programs, bool)
        while number != DONE:
            block = blocks[number]
            self._run_block(number, None)
            if programs.spinning:  # all wait, so nobody is left to arrive
                self._deadlock(number)
            if block.is_barrier:
                programs.pass_barrier(everyone)
            following = block.next
            if block.branch is not None:
                condition, target = block.branch
                holds = condition(programs.registers)
                if holds.all():
                    following = target
                elif holds.any():
                    return np.where(holds, np.int32(target), np.int32(following))
            number = following
        return None

    def _run_apart(self) -> int:
        """Until all threads are at one block, which is given back, or done."""
        held = np.zeros(self.programs.count, bool)  # for the rest of their warp, or for an mbarrier
        has_moved = False
        while True:
            can_run = (self.at != DONE) & ~self.is_parked & ~held
            if not can_run.any():
                if not self._pass_barriers() and not has_moved:
                    if (self.at == DONE).all():
                        return DONE
                    self._deadlock(int(self.at[self.at != DONE].min()))
                held[:] = False
                has_moved = False
                continue
            number = int(self.at[can_run].min())
            block = self.kernel.blocks[number]
            chosen = can_run & (self.at == number)
            if block.together > 1:
                complete = (chosen | (self.at == DONE)).reshape(-1, block.together).all(1)
                complete_threads = chosen & np.repeat(complete, block.together)
                if not complete_threads.any():
                    held |= chosen
                    continue
                chosen = complete_threads
            self._run_block(number, None if chosen.all() else chosen)
            self._move(block, chosen)
            if self.programs.spinning:
                self.programs.spinning = False
                held |= chosen
            else:
                has_moved = True
                held[:] = False
            together = int(self.at[0])
            if not self.is_parked.any() and (self.at == together).all():
                return together

    def _move(self, block: Block, chosen: Array) -> None:
        if block.branch is None:
            self.at[chosen] = block.next
        else:
            condition, target = block.branch
            holds = self.programs.full(condition(self.programs.registers))
            self.at[chosen & holds] = target
            self.at[chosen & ~holds] = block.next
        if block.is_barrier:
            self.is_parked |= chosen

    def _pass_barriers(self) -> bool:
        """Programs whose threads are all at a barrier, or done, go on; False if there are none."""
        waiting = self.is_parked.reshape(self.programs.programs, -1)
        there = (waiting | (self.at == DONE).reshape(waiting.shape)).all(1) & waiting.any(1)
        if not there.any():
            return False
        self.is_parked &= ~np.repeat(there, self.programs.threads)
        self.programs.pass_barrier(there)
        return True

    def _run_block(self, number: int, mask: Mask) -> None:
        programs = self.programs
        programs.observer.block(programs, number, mask)
        at = self.kernel.first_instructions[number]
        try:
            for at, step in self.kernel.blocks[number].steps:  # noqa: B007  which instruction it was, if one fails
                step(programs, mask)
        except Exception as error:
            instruction = self.kernel.instructions[at]
            kind = "" if isinstance(error, Fault) else f"{type(error).__name__}: "
            place = f"{self.kernel.name}, line {instruction.line} of the source, `{instruction.text}`"
            raise Fault(f"{place}: {kind}{error}") from error

    def _deadlock(self, number: int) -> None:
        instruction = self.kernel.instructions[self.kernel.first_instructions[number]]
        raise Fault(
            f"deadlock in {self.kernel.name}: threads wait at line {instruction.line} of the source, "
            f"`{instruction.text}`, for others that do not come"
        )
