"""How many faults in compiled code are noticed? They are planted one at a time, and checks against fp64 are run.

Run: python -m tools.ptx_machine.mutate [--target sm_80] [--each 2] [--seed 0]

`--each` places a kind and a kernel are drawn at random, of those that the checks run. A fault is noticed if the machine
refuses the launch (race, stray access, deadlock, ...) or the result is wrong. What is not noticed is printed.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tawin_kernels import ItemTrie, beam_step, grpo_loss, linear_log_probs, reference

from .compile import TARGETS, translated
from .core.programs import Observer, Programs
from .core.values import Fault, Mask
from .switch import switch_on

_ENDLESS = 60  # seconds


@dataclass(frozen=True)
class Kind:
    """A fault that a compiler or an author might make: `change` of a line that `place` matches."""

    name: str
    place: str
    change: Callable[[str], str]


def _one_more(line: str, pattern: str) -> str:
    """The number that the pattern's group matches, plus one."""
    found = re.search(pattern, line)
    assert found is not None
    return line[: found.start(1)] + str(int(found[1], 0) + 1) + line[found.end(1) :]


def _moved(line: str) -> str:
    """The first address of shared memory, by 16 bytes."""
    address = r"\[\s*(%r\d+)\s*(?:\+\s*(\d+))?\s*\]"
    return re.sub(address, lambda found: f"[ {found[1]} + {int(found[2] or 0) + 16} ]", line, count=1)


def _swapped(line: str) -> str:
    """The two registers of a product's right operand, or the first two of a vector."""
    pair = r"\{ ?(%r\d+), ?(%r\d+) ?\}"
    return re.sub(pair, r"{ \2, \1 }", line, count=1)


def _inverted(line: str) -> str:
    return line.replace(".lt.", ".ge.") if ".lt." in line else line.replace(".gt.", ".le.")


KINDS = (
    Kind("barrier removed", r"^\s*bar\.sync", lambda line: ""),
    Kind("one group too few awaited", r"wait_group", lambda line: _one_more(line, r"wait_group\S*\s+(\w+)")),
    Kind(
        "mask of a global access dropped", r"^\s*@!?%p\d+ (ld|st)\.global", lambda line: re.sub(r"@!?%p\d+ ", "", line)
    ),
    Kind("shared address off by 16 bytes", r"(ld|st)\.shared|ldmatrix|cp\.async\.c[ag]", _moved),
    Kind("operands of a product swapped", r"mma\.sync", _swapped),
    Kind("addition made a subtraction", r"^\s*add\.f32 .*%r\d+;", lambda line: line.replace("add.f32", "sub.f32")),
    Kind("constant off by one", r"^\s*add\.s32 .*, \d+;", lambda line: _one_more(line, r"(\d+);")),
    Kind("comparison inverted", r"^\s*setp\.(lt|gt)\.s32", _inverted),
)


def check_log_probs() -> None:
    """Forward and backward, ragged in every size."""
    for seed, (N, H, V) in enumerate(((130, 200, 700), (21, 128, 333))):
        draw = torch.Generator().manual_seed(seed)
        sizes = ((N, H), (V, H), (V,))
        inputs = [torch.randn(size, generator=draw).bfloat16().requires_grad_() for size in sizes]
        ids = torch.randint(0, V, (N,), generator=draw)
        gradient = torch.randn(N, generator=draw)
        got = linear_log_probs(inputs[0], inputs[1], ids, bias=inputs[2], impl="triton")
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        wanted = reference.linear_log_probs(wide[0], wide[1], ids, bias=wide[2])
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)
        pairs = zip(
            torch.autograd.grad(got, inputs, gradient),
            torch.autograd.grad(wanted, wide, gradient.double()),
            strict=True,
        )
        for a, b in pairs:
            assert (a.double() - b).norm() <= 1e-2 * b.norm()


def check_beam_step() -> None:
    """Nodes of few children and of more than fit a block, beams without children among them."""
    shapes = ((2, 5, 20, 21), (3, 4, 7, 21), (2, 3, 17, 400), (2, 16, 40, 90))
    for seed, (B, W, k, V) in enumerate(shapes):
        draw = torch.Generator().manual_seed(seed)
        trie = ItemTrie.from_sequences(torch.randint(0, V, (6 * V, 2), generator=draw))
        hidden, weight = (torch.randn(size, generator=draw).bfloat16() for size in ((B, W, 40), (V, 40)))
        bias = torch.randn(V, generator=draw).bfloat16()
        nodes = torch.randint(0, 20, (B, W), generator=draw)
        nodes[:, 0] = 0
        nodes[0, -1] = -1
        scores = -3 * torch.rand(B, W, generator=draw)
        for normalizer in ("vocab", "trie"):
            arguments: tuple[Any, ...] = (hidden, weight, trie, nodes, scores, k)
            more: dict[str, Any] = {"normalizer": normalizer, "bias": bias, "temperature": 0.7}
            got = beam_step(*arguments, **more, impl="triton")
            wide = (hidden.double(), weight.double(), trie, nodes, scores.double(), k)
            wanted = reference.beam_step(*wide, **{**more, "bias": bias.double()})
            assert torch.equal(got.tokens, wanted.tokens) and torch.equal(got.parents, wanted.parents)
            torch.testing.assert_close(got.scores.double(), wanted.scores, rtol=1e-5, atol=1e-4)


def check_loss() -> None:
    for seed, (B, G, L) in enumerate(((3, 5, 150), (2, 3, 210))):
        draw = torch.Generator().manual_seed(seed)
        log_probs, old, ref = (-torch.rand(B, G, L, generator=draw) for _ in range(3))
        mask = torch.rand(B, G, L, generator=draw) < 0.8
        advantages = torch.randn(B, G, generator=draw)
        log_probs.requires_grad_()
        wide = log_probs.detach().double().requires_grad_()
        options: dict[str, Any] = {"beta": 0.1, "loss_type": "grpo"}
        got = grpo_loss(log_probs, mask, advantages, old_log_probs=old, ref_log_probs=ref, impl="triton", **options)
        more: dict[str, Any] = {"old_log_probs": old.double(), "ref_log_probs": ref.double()}
        wanted = reference.grpo_loss(wide, mask, advantages.double(), **more, **options)
        torch.testing.assert_close(got.loss.double(), wanted.loss, rtol=1e-5, atol=1e-6)
        for value, expected in ((got.kl, wanted.kl), (got.clip_fraction, wanted.clip_fraction)):
            torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-5)
        a, b = torch.autograd.grad(got.loss, log_probs)[0], torch.autograd.grad(wanted.loss, wide)[0]
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-7)


CHECKS = {
    "vocabulary_kernel": check_log_probs,
    "gradient_slab_kernel": check_log_probs,
    "select_children_kernel": check_beam_step,
    "group_loss_kernel": check_loss,
}


class _Coverage(Observer):
    """Which basic blocks of each code are run."""

    def __init__(self) -> None:
        self._blocks: defaultdict[int, set[int]] = defaultdict(set)

    def block(self, programs: Programs, number: int, mask: Mask) -> None:
        self._blocks[id(programs.launch.kernel)].add(number)

    def texts(self, ptx: str) -> set[str]:
        """Instructions of this code that are run."""
        code = translated(ptx)
        ends = [*code.first_instructions[1:], len(code.instructions)]
        return {
            " ".join(instruction.text.split())
            for number in self._blocks[id(code)]
            for instruction in code.instructions[code.first_instructions[number] : ends[number]]
        }


class _Planter:
    """Takes the place of one kernel's PTX."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.original, self.mutant = "", ""

    def __call__(self, ptx: str) -> str:
        self.seen[ptx] += 1
        return self.mutant if ptx == self.original else ptx


def outcome_of(check: Callable[[], None]) -> str:
    """How a fault was noticed; "" if it was not."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_ENDLESS)
    try:
        check()
    except AssertionError:
        return "wrong result"
    except TimeoutError:
        return "endless"
    except Fault as fault:
        known = ("race", "out of bounds", "misaligned", "deadlock", "different values", "which program", "under way")
        return next((name for name in known if name in str(fault)), str(fault)[:80])
    finally:
        signal.alarm(0)
    return ""


def mutants_of(ptx: str, texts: set[str], each: int, draw: random.Random) -> list[tuple[Kind, int, str]]:
    """(kind, line, PTX with the fault), `each` of every kind that has a place. texts: of instructions that are run."""
    lines, found = ptx.split("\n"), []
    for kind in KINDS:
        changed = [(at, kind.change(line)) for at, line in enumerate(lines) if re.search(kind.place, line)]
        places = [(at, line) for at, line in changed if line != lines[at] and _statement(lines[at]) in texts]
        for at, line in sorted(draw.sample(places, min(each, len(places)))):
            found.append((kind, at, "\n".join([*lines[:at], line, *lines[at + 1 :]])))
    return found


def _statement(line: str) -> str:
    return " ".join(line.split("//")[0].strip().rstrip(";").split())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), default="sm_80")
    parser.add_argument("--each", type=int, default=2, help="faults of a kind in a kernel")
    parser.add_argument("--kernels", default=",".join(CHECKS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    planter, draw = _Planter(), random.Random(options.seed)
    coverage = _Coverage()
    switch_on(options.target, coverage, planter)
    total, noticed = 0, 0
    for kernel in options.kernels.split(","):
        planter.original = ""
        planter.seen.clear()
        CHECKS[kernel]()
        own = {ptx: count for ptx, count in planter.seen.items() if f".entry {kernel}(" in ptx}
        planter.original = max(own, key=lambda ptx: own[ptx])
        for kind, at, mutant in mutants_of(planter.original, coverage.texts(planter.original), options.each, draw):
            planter.mutant = mutant
            outcome = outcome_of(CHECKS[kernel])
            total += 1
            noticed += outcome != ""
            line = planter.original.split("\n")[at].strip()
            print(f"{kernel:24} {kind.name:34} {outcome or 'NOT NOTICED':16} line {at + 1}: {line[:90]}", flush=True)
    print(f"{noticed} of {total} faults noticed")


if __name__ == "__main__":
    main()
