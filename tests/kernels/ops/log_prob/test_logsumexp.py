"""The streamed LM head: logsumexp, entropy and single logits against fp64, wanted and unwanted rows, launches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels.launch import Target, recorded_launches
from tawin_kernels.ops.log_prob import logsumexp as linear_logsumexp
from tawin_kernels.ops.log_prob.logsumexp import live_rows, token_logits, vocabulary_statistics
from tawin_kernels.ops.log_prob.tiles import matrix_tiles, row_multiple

from ...devices import DEVICE, KERNEL_DTYPES

# fp32 accumulation of up to 80 products of size one to logits of up to size 40; powers and logarithms of base 2 add a
# few units of 2**-24 relative to that.
TOLERANCE = 3e-5
V_OF_QWEN = 151_936


def head(R: int, V: int, H: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(R, H, generator=generator).to(dtype).to(DEVICE)
    weight = torch.randn(V, H, generator=generator).to(dtype).to(DEVICE)
    bias = torch.randn(V, generator=generator).to(dtype).to(DEVICE)
    return hidden, weight, bias


def exact_logits(hidden, weight, bias, temperature):
    logits = hidden.double() @ weight.double().T
    return (logits if bias is None else logits + bias.double()) / temperature


def logsumexp(statistics, temperature=1.0):
    return statistics.maxima.double() / temperature + statistics.log_sums.double()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_wanted_rows_are_listed_in_order(wanted):
    row_ids, num_rows = live_rows(torch.tensor(wanted, device=DEVICE))
    expected = [row for row, is_wanted in enumerate(wanted) if is_wanted]
    assert num_rows.tolist() == [len(expected)]
    assert row_ids[: len(expected)].tolist() == expected


def test_more_rows_than_are_listed_at_once_are_listed_in_order():
    wanted = torch.arange(2500, device=DEVICE) % 3 == 0
    row_ids, num_rows = live_rows(wanted)
    assert row_ids[: num_rows.item()].tolist() == wanted.nonzero().squeeze(1).tolist()


@settings(max_examples=25)
@given(
    R=st.integers(1, 70),
    V=st.integers(1, 600),
    H=st.sampled_from([1, 8, 24, 64, 80]),
    dtype=st.sampled_from(KERNEL_DTYPES),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_statistics_and_logits_are_those_of_fp64(R, V, H, dtype, temperature, with_bias, seed):
    hidden, weight, bias = head(R, V, H, dtype, seed)
    bias = bias if with_bias else None
    wanted = torch.rand(R, generator=torch.Generator().manual_seed(seed)).to(DEVICE) < 0.7
    exact = exact_logits(hidden, weight, bias, temperature)[wanted]
    hidden[~wanted] = math.nan  # never read
    row_ids, num_rows = live_rows(wanted)
    statistics = vocabulary_statistics(hidden, weight, bias, temperature, row_ids, num_rows, with_entropy=True)
    tolerance = TOLERANCE / min(1.0, temperature)
    torch.testing.assert_close(logsumexp(statistics, temperature)[wanted], exact.logsumexp(-1), atol=tolerance, rtol=0)
    entropy = -(exact.softmax(-1) * exact.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(statistics.entropy[wanted].double(), entropy, atol=2 * tolerance, rtol=0)
    for written in (statistics.maxima, statistics.log_sums):
        assert bool(written[~wanted].isnan().all())  # what is not wanted is not written

    tokens = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[: max(1, V // 3)].sort().values.to(DEVICE)
    logits = token_logits(hidden, weight, bias, tokens.int(), row_ids, num_rows)
    expected = exact[:, tokens] * temperature
    torch.testing.assert_close(logits[wanted].double(), expected, atol=TOLERANCE, rtol=0)
    assert bool(logits[~wanted].isnan().all())


def test_a_row_may_be_asked_for_several_times_by_place():
    hidden, weight, bias = head(4, 50, 16, torch.float32)
    row_ids = torch.tensor([2, 2, 0], device=DEVICE)
    tokens = torch.tensor([1, 7, 49], dtype=torch.int32, device=DEVICE)
    num_rows = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    logits = token_logits(hidden, weight, bias, tokens, row_ids, num_rows, by_place=True)
    exact = exact_logits(hidden, weight, bias, 1.0)[row_ids][:, tokens.long()]
    torch.testing.assert_close(logits.double(), exact, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("partial_bytes", [12 * 3 * 2, 12 * 3 * 5, 2**24])
def test_any_split_of_the_vocabulary_gives_the_same_result(monkeypatch, partial_bytes):
    hidden, weight, bias = head(3, 700, 16, torch.float32)
    monkeypatch.setattr(linear_logsumexp, "_MAX_PARTIAL_BYTES", partial_bytes)  # two, four, eleven spans
    monkeypatch.setattr(linear_logsumexp, "_SPANS_TO_COMBINE", 4)  # and eleven are added up in three goes
    row_ids, num_rows = live_rows(torch.ones(3, dtype=torch.bool, device=DEVICE))
    got = logsumexp(vocabulary_statistics(hidden, weight, bias, 1.0, row_ids, num_rows))
    exact = exact_logits(hidden, weight, bias, 1.0).logsumexp(-1)
    torch.testing.assert_close(got, exact, atol=TOLERANCE, rtol=0)


def test_no_wanted_row_is_no_work_and_two_runs_give_the_same_bits():
    hidden, weight, _ = head(5, 300, 24, torch.float32)
    row_ids, num_rows = live_rows(torch.zeros(5, dtype=torch.bool, device=DEVICE))
    assert bool(logsumexp(vocabulary_statistics(hidden, weight, None, 1.0, row_ids, num_rows)).isnan().all())
    row_ids, num_rows = live_rows(torch.ones(5, dtype=torch.bool, device=DEVICE))
    runs = [logsumexp(vocabulary_statistics(hidden, weight, None, 1.0, row_ids, num_rows)) for _ in range(2)]
    assert torch.equal(*runs)


def test_tokens_of_probability_zero_and_broken_logits_go_through():
    hidden, weight, bias = head(3, 300, 8, torch.float32)
    bias[:260] = -math.inf  # whole tiles without a single possible token
    row_ids, num_rows = live_rows(torch.ones(3, dtype=torch.bool, device=DEVICE))
    statistics = vocabulary_statistics(hidden, weight, bias, 1.0, row_ids, num_rows, with_entropy=True)
    exact = exact_logits(hidden, weight, bias, 1.0)[:, 260:]
    torch.testing.assert_close(logsumexp(statistics), exact.logsumexp(-1), atol=TOLERANCE, rtol=0)
    entropy = -(exact.softmax(-1) * exact.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(statistics.entropy.double(), entropy, atol=TOLERANCE, rtol=0)
    hidden[1, 0] = math.nan
    broken = logsumexp(vocabulary_statistics(hidden, weight, bias, 1.0, row_ids, num_rows))
    assert broken.isnan().tolist() == [False, True, False]


def test_matrices_whose_rows_do_not_lie_in_memory_as_usual_are_read_right():
    hidden, weight, bias = head(6, 90, 8, torch.float32)
    row_ids, num_rows = live_rows(torch.ones(6, dtype=torch.bool, device=DEVICE))
    expected = logsumexp(vocabulary_statistics(hidden, weight, bias, 1.0, row_ids, num_rows))
    wide = torch.cat([hidden, hidden], 1)[:, 8:]
    for other_hidden, other_weight in ((hidden.T.contiguous().T, weight), (wide, weight.T.contiguous().T)):
        got = logsumexp(vocabulary_statistics(other_hidden, other_weight, bias, 1.0, row_ids, num_rows))
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "target", [Target("cuda", "80"), Target("cuda", "90"), Target("cuda", "120"), Target("hip", "gfx942")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 64, 4096])
@pytest.mark.parametrize("H", [896, 1000])
def test_the_operands_of_a_tile_fit_into_the_shared_memory_of_every_target(target, dtype, rows, H):
    hidden, weight = (torch.zeros(size, H, dtype=dtype, device="meta") for size in (rows, V_OF_QWEN))
    with recorded_launches(target):
        tiles = matrix_tiles(rows, hidden, weight)
    # One stage less in flight on AMD, whose loads go through registers.
    stages = tiles.num_stages - 1 if target.backend == "hip" else tiles.num_stages
    assert (tiles.rows + tiles.tokens) * tiles.hidden * dtype.itemsize * stages <= target.shared_memory


def test_a_launch_is_recorded_without_a_gpu_and_its_partial_results_stay_small():
    meta = torch.device("meta")
    R, V, H = 65_536, V_OF_QWEN, 896
    with recorded_launches(Target("cuda", "90")) as launches:
        row_ids, num_rows = (
            torch.zeros(R, dtype=torch.int32, device=meta),
            torch.zeros(1, dtype=torch.int32, device=meta),
        )
        hidden, weight = (torch.zeros(n, H, dtype=torch.bfloat16, device=meta) for n in (R, V))
        vocabulary_statistics(hidden, weight, None, 1.0, row_ids, num_rows)
    stream, combine = launches
    assert stream.grid == (132,)
    assert (stream.arguments["BLOCK_R"], stream.arguments["BLOCK_V"]) == (128, 256)
    assert stream.arguments["maxima_ptr"].nbytes + stream.arguments["sums_ptr"].nbytes <= 2**24
    spans = stream.arguments["maxima_ptr"].shape[0]
    assert spans * stream.arguments["tiles_per_span"] * 256 >= V
    assert combine.arguments["num_spans"] == spans


@pytest.mark.parametrize(("target", "at_once"), [("80", 2), ("90", 4), ("100", 4), ("120", 1)])
def test_few_rows_keep_as_many_tiles_on_their_way_as_fit_and_leave_no_more_sums(target, at_once):
    with recorded_launches(Target("cuda", target)) as launches:
        row_ids, num_rows = (torch.zeros(size, dtype=torch.int32, device="meta") for size in (16, 1))
        hidden, weight = (torch.zeros(n, 896, dtype=torch.bfloat16, device="meta") for n in (16, V_OF_QWEN))
        vocabulary_statistics(hidden, weight, None, 1.0, row_ids, num_rows)
    stream, combine = launches
    spans, tiles_per_span = combine.arguments["num_spans"], stream.arguments["tiles_per_span"]
    assert stream.grid == (spans,) and spans <= 132 * at_once
    # As few rounds of tiles as so many programs can do.
    assert tiles_per_span == -(-V_OF_QWEN // 128 // (132 * at_once)) and spans * tiles_per_span * 128 >= V_OF_QWEN


def test_matrices_that_cannot_be_read_16_bytes_at_a_time_take_smaller_tiles():
    def matrix(rows, H, *, off=0, stride=None):
        stride = H if stride is None else stride
        memory = torch.zeros(rows * stride + off, dtype=torch.bfloat16, device=DEVICE)
        return memory[off:].as_strided((rows, H), (stride, 1), off)

    weight = matrix(300, 1000)
    with recorded_launches(Target("cuda", "90")):
        large = matrix_tiles(100, matrix(100, 1000), weight)
        assert large == matrix_tiles(100, matrix(100, 896), matrix(300, 896))
        for hidden in (matrix(100, 1000, off=1), matrix(100, 1000, stride=1004), matrix(100, 1000, off=4)):
            assert matrix_tiles(100, hidden, weight) != large
        assert matrix_tiles(100, matrix(100, 1000), matrix(300, 1000, off=1)) != large
    assert row_multiple(matrix(100, 1000), weight) == 8
    assert row_multiple(matrix(100, 896), matrix(300, 896)) == 1  # Triton sees it
    assert row_multiple(matrix(100, 1000, off=1), weight) == 1
