"""The fuzzer itself: a bug that is planted is found, a case can be run again, a hang ends, arguments are checked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tawin_kernels import ItemTrie

from tools.fuzz import losses as fuzz_losses
from tools.fuzz import ops as fuzz_ops
from tools.fuzz import run as fuzz
from tools.fuzz import search as fuzz_search
from tools.fuzz import trie as fuzz_trie
from tools.fuzz.ops import Where
from tools.fuzz.run import Found, line, run_case, run_target


def failures(target: str, cases: int = 60) -> Found:
    found = run_target(target, Where(), cases=cases)
    assert found.cases == cases
    return found


def test_a_beam_step_with_its_scores_out_of_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    beam_step = fuzz_ops.beam_step

    def worst_first(*arguments: Any, **options: Any) -> Any:
        return type(step := beam_step(*arguments, **options))(*(part.flip(1) for part in step))

    monkeypatch.setattr(fuzz_ops, "beam_step", worst_first)
    found = failures("beam_step")
    assert found.failures > 10
    number = found.first_failures[0]["case"]
    assert run_case(fuzz_ops.beam_step_case(Where()), 0, number)[0] == "failed"  # again, by its number alone


def test_an_advantage_that_is_slightly_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fuzz_losses.group_advantages
    monkeypatch.setattr(fuzz_losses, "group_advantages", lambda *a, **options: right(*a, **options) * 1.001)
    assert failures("advantages").failures > 10


def test_a_refusal_where_none_is_due_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> Any:
        raise ValueError("token_ids: expected something else")

    monkeypatch.setattr(fuzz_ops, "linear_log_probs", refuses)
    assert failures("log_probs").failures > 30


def test_a_beam_search_that_gives_an_item_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fuzz_search.beam_search

    def twice(*arguments: Any, **options: Any) -> Any:
        found = right(*arguments, **options)
        for part in (found.item_ids, found.token_ids, found.mask, found.scores):
            part[:, -1] = part[:, 0]
        return found

    monkeypatch.setattr(fuzz_search, "beam_search", twice)
    assert failures("beam_search", 20).failures > 8


def test_a_damaged_file_that_loads_as_another_trie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ItemTrie.from_sequences([[1, 2, 3], [1, 2, 4], [5]])
    monkeypatch.setattr(ItemTrie, "load", classmethod(lambda cls, path, memory_map=False: other))
    case = fuzz_trie.trie_file_case()
    outcomes = [run_case(case, 0, number)[0] for number in range(40)]
    assert outcomes.count("failed") > 20


def test_a_case_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_SECONDS_A_CASE", 1)

    def hangs(_: np.random.Generator) -> str:
        time.sleep(30)
        return "passed"

    outcome, error = run_case(hangs, 0, 0)
    assert outcome == "failed" and "TimeoutError: a case took more than 1 seconds" in error


def test_a_case_depends_on_seed_and_number_alone() -> None:
    drawn: list[float] = []

    def case(random: np.random.Generator) -> str:
        drawn.append(random.random())
        return "passed"

    for seed, number in ((0, 3), (0, 4), (1, 3), (0, 3)):
        run_case(case, seed, number)
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3


def test_the_command_counts_and_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["trie", "advantages", "--cases", "20", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "trie: 20 cases, " in said and ", 0 failures in " in said
    (path,) = tmp_path.glob("fuzz-*.json")
    targets = json.loads(path.read_text())["targets"]
    assert [(one["target"], one["cases"], one["failures"]) for one in targets] == [
        ("trie", 20, 0),
        ("advantages", 20, 0),
    ]
    assert all(sum(one["outcomes"].values()) == 20 for one in targets)


def test_a_failure_shows_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(_: np.random.Generator) -> str:
        raise KeyError("no such thing")

    monkeypatch.setitem(fuzz.OTHERS, "trie", lambda: breaks)
    assert fuzz.main(["trie", "--cases", "3"]) == 1
    assert "3 failures" in (said := capsys.readouterr().out) and "case 0: KeyError: 'no such thing'" in said


@pytest.mark.parametrize("arguments", [["nonsense"], ["trie", "--cases", "0"], ["--seed", "-1"], ["--minutes", "0"]])
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        fuzz.main(arguments)
    assert refusal.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--device", "cuda", "--minutes", "5"]) == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_a_line_says_it_all() -> None:
    found = Found("trie", seed=3, cases=1200, failures=1, seconds=2.2)
    found.outcomes.update(passed=1000, refused=199)
    assert line(found) == "trie: 1,200 cases, 1,000 passed, 199 refused, 1 failures in 2 s (seed 3)"
