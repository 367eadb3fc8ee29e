"""What all ops share: impl and check_values, and the shape of their signatures."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
import textwrap

import pytest
import tawin_kernels
import torch
from tawin_kernels import ItemTrie, TAWin, reference
from tawin_kernels.launch import INTERPRETED

V, H = 5, 3


def calls() -> dict[str, tuple[list, str]]:
    """Op -> good arguments and the message about its first bad tensor value, once the value is made bad."""
    hidden, weight = torch.randn(2, 3, H), torch.randn(V, H)
    int_zeros = torch.zeros(2, 3, dtype=torch.int64)
    zeros, nan, ones = torch.zeros(2, 3), torch.full((2, 3), math.nan), torch.ones(2, 3, 4, dtype=torch.bool)
    trie = ItemTrie.from_sequences([[0, 1]])
    bad_tokens = torch.full((2, 3, 4), V)
    return {
        "beam_step": ([hidden, weight, trie, int_zeros + 9, zeros, 2], "nodes"),
        "linear_log_probs": ([hidden, weight, int_zeros + V], "token_ids"),
        "tawin_weights": ([nan, torch.ones(2, 3, dtype=torch.bool), TAWin()], "scores"),
        "group_advantages": ([nan, zeros], "rewards"),
        "grpo_loss": ([torch.zeros(2, 3, 4), ones, zeros], "denominator"),
        "tawin_grpo_loss": ([torch.randn(2, 3, 4, H), weight, bad_tokens, ones, zeros, zeros], "token_ids"),
    }


OPS = tuple(calls())


def options(op: str) -> dict:
    return {"denominator": torch.tensor(-1.0)} if op == "grpo_loss" else {}


def on_meta(argument):
    return argument.to("meta") if isinstance(argument, (torch.Tensor, ItemTrie)) else argument


@pytest.mark.parametrize("op", OPS)
def test_an_explicit_choice_that_cannot_run_raises_and_does_not_fall_back(op):
    arguments, _ = calls()[op]
    with pytest.raises(RuntimeError, match=rf"impl: {op} in Triton runs on CUDA tensors, got one on meta"):
        getattr(tawin_kernels, op)(*map(on_meta, arguments), impl="triton")
    wide = [
        argument.double() if isinstance(argument, torch.Tensor) and argument.dtype == torch.float32 else argument
        for argument in arguments
    ]
    with pytest.raises(TypeError, match=rf"impl: {op} in Triton takes float32, bfloat16 or float16, got float64"):
        getattr(tawin_kernels, op)(*wide, impl="triton")
    with pytest.raises(ValueError, match="impl: expected one of 'auto', 'triton', 'reference', got 'cuda'"):
        getattr(tawin_kernels, op)(*arguments, impl="cuda")


@pytest.mark.parametrize("interpret", [False, True])
def test_the_cpu_runs_kernels_through_the_interpreter_only_where_the_environment_asks_for_it(interpret):
    code = """
        import torch, tawin_kernels.ops.log_prob
        from tawin_kernels import linear_log_probs

        launches = []
        op = tawin_kernels.ops.log_prob
        run = op.launch
        op.launch = lambda *arguments, **options: (launches.append(1), run(*arguments, **options))
        call = (torch.randn(2, 3), torch.randn(5, 3), torch.tensor([4, 0]))
        print(linear_log_probs(*call).shape[0], len(launches))
        print(linear_log_probs(call[0].double(), call[1].double(), call[2]).dtype, len(launches))
        try:
            print(linear_log_probs(*call, impl="triton").shape[0], len(launches))
        except RuntimeError as error:
            print(error)
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    auto, wide, explicit = run.stdout.splitlines()
    if interpret:
        assert (auto, wide, explicit) == ("2 1", "torch.float64 1", "2 2")
    else:
        assert (auto, wide) == ("2 0", "torch.float64 0")
        assert "set TRITON_INTERPRET=1 before tawin_kernels is imported" in explicit


@pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter only")
@pytest.mark.parametrize("op", ["beam_step", "linear_log_probs", "tawin_grpo_loss"])
def test_the_interpreter_never_multiplies_the_bits_of_bf16(op, monkeypatch):
    hidden, weight = torch.randn(2, 3, H).bfloat16(), torch.randn(V, H).bfloat16()
    zeros, int_zeros = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    arguments = {
        "beam_step": (hidden, weight, ItemTrie.from_sequences([[0, 1]]), int_zeros, zeros, 2),
        "linear_log_probs": (hidden, weight, int_zeros),
        "tawin_grpo_loss": (hidden[..., None, :], weight, int_zeros[..., None], zeros[..., None] == 0, zeros, zeros),
    }[op]
    with pytest.raises(TypeError, match=f"impl: {op} through Triton's interpreter takes .*, got bfloat16"):
        getattr(tawin_kernels, op)(*arguments, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # "auto" means Triton on the CPU too
    ours, expected = getattr(tawin_kernels, op)(*arguments), getattr(reference, op)(*arguments)
    assert torch.equal(ours[0], expected[0])
    assert getattr(tawin_kernels, op)(*map(widened, arguments), impl="triton") is not None


def widened(argument):
    is_bf16 = isinstance(argument, torch.Tensor) and argument.dtype == torch.bfloat16
    return argument.float() if is_bf16 else argument


@pytest.mark.parametrize("op", OPS)
def test_a_reference_op_is_no_other_implementation(op):
    arguments, _ = calls()[op]
    with pytest.raises(
        ValueError, match=rf"impl: expected 'auto' or 'reference', got 'triton': reference\.{op} is the"
    ):
        getattr(reference, op)(*arguments, impl="triton")
    with pytest.raises(ValueError, match="impl: expected one of 'auto', 'triton', 'reference', got 'cuda'"):
        getattr(reference, op)(*arguments, impl="cuda")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("check_values", [None, True, False])
def test_tensor_values_are_always_checked_on_the_cpu(op, impl, check_values):
    arguments, name = calls()[op]
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        getattr(tawin_kernels, op)(*arguments, impl=impl, check_values=check_values, **options(op))
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        getattr(reference, op)(*arguments, impl=impl, check_values=check_values, **options(op))


@pytest.mark.parametrize("op", OPS)
def test_check_values_is_a_switch(op):
    arguments, _ = calls()[op]
    with pytest.raises(TypeError, match="check_values: expected None, True or False, got 'yes'"):
        getattr(tawin_kernels, op)(*arguments, check_values="yes")


@pytest.mark.parametrize("op", ["tawin_weights", "group_advantages", "grpo_loss"])
@pytest.mark.parametrize("check_values", [None, False])
def test_off_the_cpu_no_tensor_value_is_looked_at_unasked(op, check_values):
    # A meta tensor has no values: reading one raises. The ops that need none to run go through.
    arguments, _ = calls()[op]
    getattr(tawin_kernels, op)(*map(on_meta, arguments), check_values=check_values)


@pytest.mark.parametrize("op", ["tawin_weights", "group_advantages"])
def test_off_the_cpu_tensor_values_are_looked_at_when_asked(op):
    arguments, _ = calls()[op]
    with pytest.raises(RuntimeError, match="meta"):
        getattr(tawin_kernels, op)(*map(on_meta, arguments), check_values=True)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_has_the_signature_of_the_public_op(op):
    public = inspect.signature(getattr(tawin_kernels, op))
    its_own = inspect.signature(getattr(reference, op))
    assert its_own == public
    assert list(its_own.parameters) == list(public.parameters)  # equal signatures may name keywords in another order


def test_the_public_names_are_those_of_the_contract():
    assert sorted(tawin_kernels.__all__) == sorted([*OPS, "BeamStep", "GRPOLoss", "ItemTrie", "TAWin", "reference"])


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (
            "beam_step",
            "hidden lm_head_weight trie nodes scores beam_width * normalizer='vocab' temperature=1.0 bias=None",
        ),
        ("linear_log_probs", "hidden lm_head_weight token_ids * temperature=1.0 bias=None"),
        ("tawin_weights", "scores negatives tawin *"),
        ("group_advantages", "rewards scores=None * tawin=None normalize_std=True eps=0.0001 valid=None"),
        (
            "grpo_loss",
            "log_probs mask advantages * old_log_probs=None ref_log_probs=None loss_type='grpo' epsilon_low=0.2 "
            "epsilon_high=0.2 beta=0.0 valid=None denominator=None",
        ),
        (
            "tawin_grpo_loss",
            "hidden lm_head_weight token_ids mask rewards scores * tawin=TAWin(anchor=2.0,window=1.0,"
            "temperature=1.0,rank_transform='identity') old_log_probs=None ref_log_probs=None loss_type='grpo' "
            "epsilon_low=0.2 epsilon_high=0.2 beta=0.0 temperature=1.0 bias=None normalize_std=True eps=0.0001 "
            "valid=None denominator=None",
        ),
    ],
)
def test_arguments_and_defaults_are_those_of_the_contract(op, expected):
    words = []
    for name, parameter in inspect.signature(getattr(tawin_kernels, op)).parameters.items():
        if parameter.kind == parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = repr(parameter.default).replace(" ", "")
        words.append(name if parameter.default is parameter.empty else f"{name}={default}")
    # There may be more keywords, with defaults, than the contract has.
    positional, keywords = f"{expected} impl='auto' check_values=None".split("* ")
    star = words.index("*")
    assert " ".join(words[:star]) == positional.strip()
    assert set(keywords.split(" ")) <= set(words[star + 1 :])
    assert all("=" in word for word in words[star + 1 :])
