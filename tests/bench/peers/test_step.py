"""The peers' whole training steps compute what ours computes, a wrong one is told, and what is measured is written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import bench_training_step
from bench.cases.ratios import PolicyShape
from bench.measure import machine_facts
from bench.peers import MissingPeer
from bench.step.cases import CPU_SETTINGS, END, StepCase, StepSetting, draw_ids, draw_titles, make_case
from bench.step.memory import memory_of_step
from bench.step.report import common_tokens, prefixes_run
from bench.step.ways import PEER_WAYS, StepAnswer, compare_steps, counted_tokens, rolled_out, way_of
from tawin.run.phases import PHASES

CPU = torch.device("cpu")
TINY = StepSetting(
    "tiny",
    model=PolicyShape(text_tokens=60, hidden_size=16, layers=2, heads=2, intermediate_size=24),
    prompts=4,
    instruction=6,
    history=3,
    group_size=4,
    titles=50,
    hit_share=0.5,
    reference_noise=1.0,  # log-probs that hardly differ would leave a KL of rounding errors
    prompts_at_once={"rere": 2, "shared_prefix_plain": 3},
)
AGREEING = {
    "some dead": TINY,
    "some dead, KL": replace(TINY, beta=0.1),
    "all live": replace(TINY, hit_share=1.0),
    "all live, KL": replace(TINY, hit_share=1.0, beta=0.1),
    "all dead": replace(TINY, hit_share=0.0),
    "all dead, KL": replace(TINY, hit_share=0.0, beta=0.1),
    "plain advantages": replace(TINY, is_windowed=False),
    "several forwards of ours": replace(TINY, beta=0.1, prompts_at_once={"ours": 3}),
    "titles": replace(TINY, catalogue="titles"),
    "titles, KL": replace(TINY, catalogue="titles", beta=0.1),
}


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[StepCase, StepAnswer]]:
    """A case of AGREEING and our answer, made once."""
    cases: dict[str, tuple[StepCase, StepAnswer]] = {}

    def make(name: str) -> tuple[StepCase, StepAnswer]:
        if name not in cases:
            case = make_case(AGREEING[name], CPU)
            cases[name] = (case, way_of("ours", case).answer())
        return cases[name]

    return make


Made = Callable[[str], tuple[StepCase, StepAnswer]]


@pytest.mark.parametrize("peer", PEER_WAYS)
@pytest.mark.parametrize("name", AGREEING)
def test_a_peers_step_gives_our_items_loss_and_gradients(name: str, peer: str, made: Made) -> None:
    case, ours = made(name)
    try:
        way = way_of(peer, case)
    except MissingPeer as missing:
        pytest.skip(str(missing))
    assert "gradients within" in compare_steps(ours, way.answer(), case.catalog.trie)


@pytest.mark.parametrize("name", AGREEING)
def test_as_many_groups_are_live_as_the_setting_says(name: str, made: Made) -> None:
    case, ours = made(name)
    assert ours.live_share == case.setting.hit_share
    gradient = torch.stack([gradient.norm() for gradient in ours.gradients.values()]).norm()
    assert (gradient > 0) == (case.setting.hit_share > 0 or case.setting.beta > 0)


@pytest.mark.parametrize("name", ["some dead", "some dead, KL"])
@pytest.mark.parametrize("peer", ["rere", "shared_prefix_plain"])
def test_a_peer_with_another_weight_is_told(peer: str, name: str, made: Made) -> None:
    case, ours = made(name)
    with torch.no_grad():
        case.model.get_decoder().layers[0].mlp.up_proj.weight[0] *= 1.5
    try:
        wrong = way_of(peer, case).answer()
    finally:
        case.restore()
    with pytest.raises(AssertionError):
        compare_steps(ours, wrong, case.catalog.trie)


def test_every_part_of_an_answer_is_compared(made: Made) -> None:
    case, ours = made("some dead, KL")
    for wrong, part in (
        (replace(ours, scores=ours.scores + 1e-3), "scores"),
        (replace(ours, token_ids=ours.token_ids.flip(1)), "items"),
        (replace(ours, rewards=1 - ours.rewards), "rewards"),
        (replace(ours, loss=ours.loss + 1e-4), "loss"),
        (replace(ours, gradients={name: 1.001 * g for name, g in ours.gradients.items()}), "gradients"),
    ):
        with pytest.raises(AssertionError, match=part):
            compare_steps(ours, wrong, case.catalog.trie)


def test_a_peers_reference_matters(made: Made) -> None:
    case, ours = made("some dead, KL")
    other = way_of("rere", replace(case, reference=make_case(TINY, CPU).model.requires_grad_(False))).answer()
    with pytest.raises(AssertionError, match="loss"):
        compare_steps(ours, other, case.catalog.trie)


def test_peers_run_every_token_of_every_group_and_ours_fewer(made: Made) -> None:
    case, ours = made("some dead, KL")
    input_ids, _ = case.catalog.encode_histories(case.histories)
    B, P = input_ids.shape
    _, G, L = ours.token_ids.shape
    rollout = B * G * (P + L - 1)  # generate repeats the prompt a beam
    tokens = {}
    for name in ("ours", "rere", "shared_prefix_plain"):
        with counted_tokens(case) as tokens[name]:
            way_of(name, case).answer()
    assert tokens["rere"] == {"policy": rollout + B * G * (P + L), "reference": B * G * (P + L)}
    assert tokens["shared_prefix_plain"] == {"policy": rollout + B * (P + G * L), "reference": B * (P + G * L)}
    assert 0 < tokens["ours"]["reference"] < tokens["shared_prefix_plain"]["reference"]
    assert tokens["ours"]["policy"] < tokens["shared_prefix_plain"]["policy"]


def test_a_step_moves_the_weights_and_restoring_puts_them_back() -> None:
    case = make_case(TINY, CPU)
    for name in ("ours", "rere"):
        way_of(name, case).step()
        moved = [not torch.equal(p, w) for p, w in zip(case.model.parameters(), case.start, strict=True)]
        assert sum(moved) > len(moved) / 2
        case.restore()
        assert all(
            torch.equal(p, w) and p.grad is None for p, w in zip(case.model.parameters(), case.start, strict=True)
        )


def test_the_peers_optimizer_has_our_settings(made: Made) -> None:
    case, _ = made("some dead")
    ours = case.stage.optimizer.optimizer
    assert type(ours) is type(case.peer_optimizer)
    for mine, theirs in zip(ours.param_groups, case.peer_optimizer.param_groups, strict=True):
        assert all(mine[name] == theirs[name] for name in ("lr", "betas", "eps", "weight_decay", "fused"))
        assert [id(p) for p in mine["params"]] == [id(p) for p in theirs["params"]]


def test_a_case_is_the_same_whenever_it_is_made(made: Made) -> None:
    case, ours = made("some dead, KL")
    again = make_case(case.setting, CPU)
    assert torch.equal(rolled_out(again).token_ids, ours.token_ids)
    assert all(torch.equal(a, b) for a, b in zip(again.start, case.start, strict=True))
    assert (again.chosen.targets == case.chosen.targets).all()


def test_drawn_titles_differ_and_end_once() -> None:
    titles = draw_titles(500, 200)
    assert len(set(map(tuple, titles))) == len(titles) == 200
    assert all(title.count(END) == 1 and title[-1] == END and 8 <= len(title) <= 24 for title in titles)
    assert len({title[0] for title in titles}) < 150  # brands come again and again


def test_drawn_ids_have_the_children_that_are_asked_for() -> None:
    ids = torch.from_numpy(draw_ids((5, 4, 3)))
    assert [len(ids[:, :depth].unique(dim=0)) for depth in (1, 2, 3)] == [5, 20, 60]


def test_distinct_prefixes_and_common_beginnings_are_counted() -> None:
    assert prefixes_run(torch.tensor([[[1, 2, 3], [1, 2, 4], [1, 5, -100], [-100, -100, -100]]])) == 2
    ids = torch.tensor([[0, 7, 8, 9], [7, 8, 5, 6]])
    assert common_tokens(ids, (ids > 0).long()) == 2


def test_the_peak_of_memory_is_at_least_what_was_there_before() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system keeps no peak that can be set back")
    memory = memory_of_step(TINY, "rere", CPU)
    assert memory["peak"] >= memory["before"] > 2**20


def test_the_command_writes_figures_and_a_trace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_training_step, "DEVICE", CPU)
    monkeypatch.setitem(CPU_SETTINGS, "tiny", replace(TINY, beta=0.1))
    arguments = ["--case", "tiny", "--rounds", "2", "--no-memory", "--device", "cpu"]
    bench_training_step.main([*arguments, "--out", str(tmp_path), "--trace", str(tmp_path / "traces")])
    printed = capsys.readouterr().out
    assert "ours is" in printed and "policy_forward" in printed
    (path,) = tmp_path.glob("training-step-*.json")
    figures = json.loads(path.read_text())
    assert figures["machine"]["torch"] == machine_facts(CPU)["torch"]
    (case,) = figures["cases"]
    assert case["live_share"] == 0.5
    ways = {way["way"]: way for way in case["ways"] if "missing" not in way}
    assert {"ours", "rere", "shared_prefix_plain"} <= set(ways)
    for name, way in ways.items():
        assert len(way["seconds"]) == len(way["phase_seconds"]) == (6 if name == "ours" else 2)
        for step, phases in zip(way["seconds"], way["phase_seconds"], strict=True):
            assert list(phases) == list(PHASES)
            assert all(phases[phase] > 0 for phase in PHASES)
            assert 0.5 * step < sum(phases.values()) <= step  # phases do not lie within each other
    assert ways["rere"]["goal"] == 20 and ways["rere"]["ratio_of_medians"] > 0
    (trace,) = (tmp_path / "traces").glob("trace-tiny-ours-*.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {f"tawin.{phase}" for phase in PHASES} <= {event.get("name") for event in events}


@pytest.mark.parametrize(
    "arguments", [["--case", "nonsense"], ["--rounds", "0"], ["--way", "ours"], ["--trace-peers"], ["--threads", "0"]]
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        bench_training_step.main(arguments)
    assert refusal.value.code == 2
    assert "error: " in capsys.readouterr().err
