"""The model of a step's cost against a FLOP counter, against its own limits, and against the tables that quote it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.peers import repeated_prompt_log_probs
from tawin.model.backbone import backbone
from tawin.model.packing import packs
from tawin.model.token_tree import completion_states
from tawin.model.tree_attention import prefill
from tawin.run.phases import PHASES
from tools.cost.model import (
    QWEN2_5,
    TRAINING,
    WAYS,
    Forward,
    ModelShape,
    StepShape,
    Work,
    causal_pairs,
    decoder,
    decoder_least,
    decoder_wanted,
    needed_flops,
    step_flops,
    step_work,
)
from tools.cost.seconds import (
    H200,
    Cluster,
    cluster_seconds,
    expected_maximum,
    seconds_of,
    step_memory,
    step_seconds,
    traffic_efficiency,
)
from tools.cost.tables import TABLES, filled, main

DOCUMENT = (Path(__file__).parents[3] / "docs/PERFORMANCE.md").read_text(encoding="utf-8")
SMALL = QWEN2_5["Qwen2.5-0.5B"]
B, P, G, L = 3, 24, 4, 3
STEP = StepShape(prompts=B, prompt_tokens=P, group_size=G, length=L, live_share=1.0, prefix_share=1.0)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    made = Qwen2ForCausalLM(config).eval()
    packs(backbone(made))  # both try the model out the first time, which is not to be counted
    return made


@pytest.fixture
def prompts() -> Tensor:
    return torch.randint(3, 300, (B, P), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def completions() -> Tensor:
    """[B, G, L], no two of a group alike in their first token: nothing is shared."""
    return torch.arange(5, 5 + B * G * L).view(B, G, L)


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def plain_attention() -> AbstractContextManager[None]:
    """The only sdpa of the CPU whose products the counter sees; it computes every pair, also what a mask hides."""
    return sdpa_kernel(SDPBackend.MATH)


def test_a_prefill_does_the_flops_that_a_counter_sees(model: Qwen2ForCausalLM, prompts: Tensor) -> None:
    shape = ModelShape.from_config(model.config)
    with plain_attention(), torch.no_grad(), counter() as seen:
        prefill(backbone(model), prompts, torch.ones_like(prompts))
    predicted = decoder_wanted(shape, P, P**2, 1).flops * B
    # Not foreseen: the rotary frequencies are a product of positions with head_dim / 2 numbers, 2 P 8 a prompt.
    assert math.isclose(seen.get_total_flops(), predicted, rel_tol=1e-3)
    # The model takes a causal kernel, as GPUs have it, which skips half of the pairs: a few per cent at this size.
    hidden = decoder(shape, 0, B * (P**2 - causal_pairs(P))).flops
    assert math.isclose(step_flops(shape, STEP, "tawin")["prefill"], predicted - hidden)
    assert hidden < 0.05 * predicted


def test_the_policys_forward_and_backward_do_the_flops_that_a_counter_sees(
    model: Qwen2ForCausalLM, prompts: Tensor, completions: Tensor
) -> None:
    shape = ModelShape.from_config(model.config)
    with plain_attention(), counter() as forward:
        states, _ = completion_states(backbone(model), prompts, torch.ones_like(prompts), completions)
    assert len(states) == B * (1 + G * (L - 1))
    predicted = step_flops(shape, STEP, "tawin")
    assert math.isclose(forward.get_total_flops(), predicted["policy_forward"], rel_tol=1e-3)
    with plain_attention(), counter() as backward:
        states.sum().backward()
    whole = decoder_wanted(shape, P + G * (L - 1), (P + G * (L - 1)) ** 2, 1 + G * (L - 1))
    # Plain attention keeps its scores, a fused kernel makes them again; the first layer's states do get a gradient, as
    # the embedding is trained.
    assert math.isclose(backward.get_total_flops(), B * whole.backward(recomputes=False), rel_tol=1e-3)
    head = predicted["backward"] - B * whole.backward(recomputes=True)
    assert math.isclose(head, 3 * B * (1 + G * (L - 1)) * 2 * 300 * 64)


def test_a_shared_prefill_leaves_the_policy_its_suffix(
    model: Qwen2ForCausalLM, prompts: Tensor, completions: Tensor
) -> None:
    shape = ModelShape.from_config(model.config)
    parts, mask = backbone(model), torch.ones_like(prompts)
    with plain_attention():
        prompt = prefill(parts, prompts, mask)
        with counter() as seen:
            completion_states(parts, prompts, mask, completions, prompt)
    shared = replace(STEP, has_reference=True, shares_prefill=True)
    assert math.isclose(seen.get_total_flops(), step_flops(shape, shared, "tawin")["policy_forward"], rel_tol=1e-3)


def test_common_tokens_are_run_once(model: Qwen2ForCausalLM, prompts: Tensor, completions: Tensor) -> None:
    shape = ModelShape.from_config(model.config)
    prompts[:, :10] = prompts[:1, :10]
    prompts[:, 10] = torch.arange(B)
    with plain_attention(), torch.no_grad(), counter() as seen:
        prompt = prefill(backbone(model), prompts, torch.ones_like(prompts))
    common = replace(STEP, common_tokens=10)
    extra = decoder(shape, 0, 10**2 - causal_pairs(10)).flops  # the common tokens' hidden pairs
    assert math.isclose(seen.get_total_flops(), step_flops(shape, common, "tawin")["prefill"] + extra, rel_tol=1e-3)
    with plain_attention(), torch.no_grad(), counter() as seen:
        completion_states(backbone(model), prompts, torch.ones_like(prompts), completions)
    policy = step_flops(shape, common, "tawin")["policy_forward"]
    assert math.isclose(seen.get_total_flops(), policy + extra, rel_tol=1e-3)
    assert prompt.last_hidden.shape == (B, 64)


def test_repeated_prompts_do_the_flops_that_a_counter_sees(
    model: Qwen2ForCausalLM, prompts: Tensor, completions: Tensor
) -> None:
    shape = ModelShape.from_config(model.config)
    with plain_attention(), torch.no_grad(), counter() as seen:
        repeated_prompt_log_probs(model, prompts, torch.ones_like(prompts), completions)
    # Half of the attention's pairs, which plain attention computes, are not foreseen: some per cent at this size.
    hidden = decoder(shape, 0, B * G * ((P + L) ** 2 - causal_pairs(P + L))).flops
    predicted = step_flops(shape, STEP, "rere")["policy_forward"]
    assert math.isclose(seen.get_total_flops(), predicted + hidden, rel_tol=1e-3)
    assert hidden < 0.05 * predicted


def test_parameters_are_those_of_the_model(model: Qwen2ForCausalLM) -> None:
    shape = ModelShape.from_config(model.config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert SMALL.parameters == 494_032_768  # as published
    assert QWEN2_5["Qwen2.5-7B"].parameters == 7_615_616_512


STEPS = [
    replace(STEP, prompts=64, prompt_tokens=prompt, group_size=group, length=length, live_share=live, **options)
    for prompt in (16, 256, 600)
    for group in (2, 16)
    for length in (1, 2, 24)
    for live in (0.0, 0.15, 1.0)
    for options in (
        {},
        {"normalizer": "trie", "prefix_share": 0.4},
        {"has_reference": True, "prefix_share": 0.5},
        {"has_reference": True, "shares_prefill": True, "trains_head": False},
        {"padded_tokens": 700.0},
        {"repeated_logits": "all"},
        {"common_tokens": 15.0},
        {"common_tokens": 10.0, "has_reference": True, "padded_tokens": 610.0},
    )
]


@pytest.mark.parametrize("name", QWEN2_5)
def test_every_way_does_at_least_what_is_needed_and_rere_the_most(name: str) -> None:
    for step in STEPS:
        shape = QWEN2_5[name]
        whole = {way: sum(step_flops(shape, step, way).values()) for way in WAYS}
        assert whole["rere"] >= whole["shared_prefix"] >= whole["tawin"], step
        needed, done = needed_flops(shape, step), step_flops(shape, step, "tawin")
        for phase in PHASES:
            assert 0 <= needed[phase] <= done[phase] * (1 + 1e-12), (phase, step)
        for way in WAYS:
            assert min(work.bytes for work in step_work(shape, step, way).values()) >= 0


def test_without_a_live_group_nothing_is_trained_on_unless_there_is_a_kl() -> None:
    dead = replace(STEP, live_share=0.0)
    assert all(step_work(SMALL, dead, "tawin")[phase] == Work() for phase in TRAINING)
    assert all(needed_flops(SMALL, dead)[phase] == 0 for phase in TRAINING)
    assert step_flops(SMALL, dead, "rere") == step_flops(SMALL, STEP, "rere")
    with_kl = replace(dead, has_reference=True)
    assert step_flops(SMALL, with_kl, "tawin") == step_flops(SMALL, replace(STEP, has_reference=True), "tawin")
    assert step_flops(SMALL, with_kl, "tawin")["reference"] > 0


def test_one_token_needs_no_decode_but_the_head_and_no_suffix() -> None:
    one = replace(STEP, length=1)
    rows = 2 * SMALL.vocabulary * SMALL.hidden_size
    assert needed_flops(SMALL, one)["decode"] == B * rows
    assert needed_flops(SMALL, one)["policy_forward"] == needed_flops(SMALL, one)["prefill"]
    assert step_flops(SMALL, one, "rere")["decode"] == B * G * rows


def test_one_completion_a_prompt_leaves_nothing_to_be_shared() -> None:
    single = replace(STEP, group_size=1)
    tokens = {way: step_flops(SMALL, single, way)["policy_forward"] for way in WAYS}
    rere = tokens["rere"] - B * (L + 1) * 2 * SMALL.vocabulary * SMALL.hidden_size  # its logits are made there
    assert math.isclose(tokens["shared_prefix"], rere, rel_tol=1e-12)
    # One token less, the last one of a completion, and the last layer's MLP at the prompt.
    ours = decoder_wanted(SMALL, P + L - 1, (P + L - 1) ** 2, L).flops * B
    assert math.isclose(tokens["tawin"], ours, rel_tol=1e-12)


def test_work_grows_as_it_should() -> None:
    def ours(**changes: Any) -> dict[str, float]:
        return step_flops(SMALL, replace(STEP, **changes), "tawin")

    base, double = ours(), ours(prompts=2 * B)
    assert all(math.isclose(double[phase], 2 * base[phase]) for phase in PHASES)
    layers = [decoder(replace(SMALL, layers=n), 10, 100).flops for n in (1, 2, 3)]
    assert math.isclose(layers[2] - layers[1], layers[1] - layers[0])
    assert math.isclose(ours(live_share=0.5)["backward"], base["backward"] / 2)
    widths = [ours(group_size=g)["loss"] for g in (2, 3, 4)]
    assert math.isclose(widths[2] - widths[1], widths[1] - widths[0])
    words = [step_flops(replace(SMALL, vocabulary=v), STEP, "tawin")["decode"] for v in (1000, 2000, 3000)]
    assert math.isclose(words[2] - words[1], words[1] - words[0])
    # Of items only what the trie is made of counts.
    trie = [ours(normalizer="trie", trie_tokens=u)["loss"] for u in (500, 1000)]
    assert math.isclose(trie[1], 2 * trie[0])
    assert ours(normalizer="trie", children=5) == ours(normalizer="trie", children=50)


def test_long_prompts_lead_to_the_limits_that_the_document_names() -> None:
    # Next to no attention, head or last layer: products with the blocks' weights alone.
    blocks = ModelShape(1024, 400, 1, 1, 1, 4096, 1)
    long = StepShape(prompt_tokens=100_000, live_share=0.2)

    def ratios(step: StepShape) -> list[float]:
        whole = {way: sum(step_flops(blocks, step, way).values()) for way in WAYS}
        return [whole[way] / whole["tawin"] for way in ("rere", "shared_prefix")]

    # Within 2 %: completions are 64 tokens of 100,000, the last layer one of 400, and pairs of tokens still count.
    assert ratios(long) == pytest.approx([4 * 16 / 1.6, 19 / 1.6], rel=0.02)
    assert ratios(replace(long, live_share=1.0)) == pytest.approx([16, 19 / 4], rel=0.02)
    with_kl = replace(long, has_reference=True, shares_prefill=True)
    assert ratios(with_kl) == pytest.approx([20, 5], rel=0.02)


def test_the_last_layer_is_left_out_where_it_is_not_wanted() -> None:
    everything = decoder(SMALL, 10, 55)
    assert decoder_wanted(SMALL, 10, 55, 10) == everything == decoder_least(SMALL, 10, 55, 10, 55)
    mlp_only, least = decoder_wanted(SMALL, 10, 55, 1), decoder_least(SMALL, 10, 55, 1, 10)
    assert everything.products - mlp_only.products == 9 * 2 * SMALL.mlp_parameters
    assert least.flops < mlp_only.flops < everything.flops
    assert Forward(4.0, 2.0).backward(recomputes=True) == 13.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "prompts: expected at least 1"),
        ({"length": 0}, "length"),
        ({"live_share": 1.5}, "live_share: expected a share"),
        ({"prefix_share": -0.1}, "prefix_share"),
        ({"padded_tokens": 3.0}, "padded_tokens: expected at least prompt_tokens"),
        ({"common_tokens": 24.0}, "common_tokens: expected less than prompt_tokens"),
        ({"shares_prefill": True}, "shares_prefill: expected has_reference"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(STEP, **changes)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match=r"way: expected one of tawin, shared_prefix, rere, got 'other'"):
        step_flops(SMALL, STEP, "other")  # type: ignore[arg-type]


def test_seconds_are_those_of_what_binds() -> None:
    rate = H200.flops_per_second * H200.efficiency
    assert math.isclose(seconds_of(Work(flops=rate), H200), 1.0)
    assert math.isclose(seconds_of(Work(flops=rate, bytes=2 * H200.bytes_per_second), H200), 2.0)
    launched = Work(launches=1e6)
    assert math.isclose(seconds_of(launched, H200), 1e6 * H200.python_seconds)
    assert math.isclose(seconds_of(replace(launched, launched_by="graph"), H200), 1e6 * H200.launch_seconds)
    assert math.isclose(seconds_of(Work(beams=1e6), H200), 1e6 * H200.beam_seconds)
    faster = replace(H200, efficiency=1.0)
    base = StepShape()
    assert sum(step_seconds(SMALL, base, faster).values()) < sum(step_seconds(SMALL, base).values())
    assert traffic_efficiency(SMALL) < traffic_efficiency(SMALL, is_fused=True) < 1


def test_the_expected_maximum_is_that_of_all_outcomes() -> None:
    trials, share, ranks = 3, 0.3, 3
    chances = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
    outcomes = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    exact = sum(max(outcome) * math.prod(chances[k] for k in outcome) for outcome in outcomes)
    assert math.isclose(expected_maximum(trials, share, ranks), exact)
    assert math.isclose(expected_maximum(64, 0.15, 1), 9.6)
    assert expected_maximum(64, 0.0, 8) == 0
    assert expected_maximum(64, 1.0, 8) == 64


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_cluster_of_one_is_one_gpu_and_larger_ones_wait(strategy: str) -> None:
    base = StepShape()
    alone = sum(step_seconds(SMALL, base).values())
    found = [cluster_seconds(SMALL, base, Cluster(gpus), strategy) for gpus in (1, 8, 64)]  # type: ignore[arg-type]
    assert math.isclose(sum(found[0].values()), alone)
    assert found[0]["waiting"] == found[0]["communication"] == 0
    assert 0 < found[1]["waiting"] < found[2]["waiting"]
    assert 0 < found[1]["communication"] <= found[2]["communication"]
    balanced = cluster_seconds(SMALL, base, Cluster(64), strategy, is_balanced=True)  # type: ignore[arg-type]
    assert 0 < balanced["waiting"] < found[2]["waiting"]
    with_kl = cluster_seconds(SMALL, replace(base, has_reference=True), Cluster(64), strategy)  # type: ignore[arg-type]
    assert with_kl["waiting"] == 0


def test_a_ring_moves_its_bytes_once_each_way() -> None:
    one_machine, eight = Cluster(8), Cluster(64)
    assert math.isclose(one_machine.bytes_per_second, 0.8 * 450e9)
    assert math.isclose(eight.bytes_per_second, 0.8 * 8 * 50e9)
    assert math.isclose(one_machine.pass_seconds(360e9), 7 / 8)
    assert Cluster(1).pass_seconds(1e9) == 0


def test_memory_counts_what_is_trained_on() -> None:
    base = StepShape()
    ours, repeated = step_memory(SMALL, base), step_memory(SMALL, base, "rere")
    assert ours["weights"] == 18 * SMALL.parameters == repeated["weights"]
    assert math.isclose(step_memory(SMALL, replace(base, live_share=0.3))["activations"], 2 * ours["activations"])
    assert repeated["activations"] > 16 * ours["activations"]
    with_kl = step_memory(SMALL, replace(base, has_reference=True))
    assert with_kl["weights"] == 22 * SMALL.parameters


def test_the_document_has_every_table_as_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name, make in TABLES.items():
        assert f"<!-- table {name} -->\n{make()}\n<!-- end -->" in DOCUMENT, (
            f"{name} has drifted: --write makes it anew"
        )
    assert filled(DOCUMENT) == DOCUMENT
    assert main(["--only", "phases"]) == 0
    assert TABLES["phases"]() in capsys.readouterr().out


def test_a_file_is_filled_in_and_keeps_its_text(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table imbalance -->\nold\n<!-- end -->\nafter\n")
    assert main(["--write", str(path)]) == 0
    assert path.read_text() == f"before\n<!-- table imbalance -->\n{TABLES['imbalance']()}\n<!-- end -->\nafter\n"
    with pytest.raises(ValueError, match="table: expected one of"):
        filled("<!-- table nothing -->\n<!-- end -->")
