"""Memory: what is loaded and stored, and what is refused: strays, races, meetings of two programs."""

from __future__ import annotations

import numpy as np
import pytest

from tools.ptx_machine import Fault

from .snippets import run_ptx

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64

PLACES = """
  .reg .b32 %r<9>;
  .reg .b64 %rd<9>;
  .reg .pred %p<4>;
  shl.b64 %rd0, %rdtid, 2;
  add.s64 %rd1, %rd0, %rd_x;
  shl.b32 %r0, %tid, 2;
"""


def test_vectors_and_small_types_are_loaded_and_stored_whole():
    x, out = np.arange(8, dtype=u32), np.zeros(8, u32)
    body = """
  .reg .b32 %a<4>;
  .reg .pred %p;
  setp.ne.b32 %p, %tid, 0;
  @%p ret;
  ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd_x + 16];
  st.global.L1::evict_last.v2.b32 [%rd_out], {%a3, %a1};
  ld.global.nc.s8 %a0, [%rd_small + 1];
  st.global.b32 [%rd_out + 8], %a0;
  ld.global.b8 %a0, [%rd_small + 1];
  st.global.b32 [%rd_out + 12], %a0;
"""
    run_ptx(body, {"x": x, "out": out, "small": np.array([1, 254], u8)})
    assert out.tolist() == [7, 5, 2**32 - 2, 254, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ld.global.b32 %r1, [%rd1 + 4];", r"out of bounds: 4 bytes at \+128 of x, which has 128 bytes"),
        ("st.global.b32 [%rd1 + -4], %r0;", r"out of bounds: 4 bytes at -4 of x"),
        ("ld.global.v2.b32 {%r1, %r2}, [%rd1 + 120];", "misaligned access of 8 bytes"),
        ("st.shared.b32 [global_smem + 64], %r0;", "shared access out of bounds: 4 bytes at 64 of 64"),
        ("ld.shared.b64 %rd2, [global_smem + 4];", "misaligned access of 8 bytes to shared memory"),
        ("ld.shared.b32 %r1, [%r0 + 4];", "shared access out of bounds"),
        ("cp.async.ca.shared.global [global_smem], [%rd1 + 1000], 4, 4;", "out of bounds"),
        ("st.global.b32 [%rd_x], %tid;", "two threads store different values to one address of x"),
        ("st.shared.b32 [global_smem], %tid;", "two threads write different values to one shared address"),
        # 1.0 and numbers a few last bits above it: copies of one sum that were not added in one order.
        (
            "add.u32 %r1, %tid, 0x3f800000; st.shared.b32 [global_smem], %r1;",
            "two threads write different values to one shared address",
        ),
        (
            "add.u32 %r1, %tid, 0x3f800000; st.global.b32 [%rd_x], %r1;",
            "two threads store different values to one address of x",
        ),
    ],
)
def test_strays_and_clashes_are_refused(line, message):
    with pytest.raises(Fault, match=message):
        run_ptx(PLACES + line, {"x": np.zeros(32, u32)}, shared=64)


def test_bounds_are_those_of_the_tensor_and_not_of_its_storage():
    x = np.zeros(40, u32)
    run_ptx(PLACES + "st.global.b32 [%rd1], %r0;", {"x": x[4:36]})
    assert x[:4].any() == x[36:].any() == False  # noqa: E712
    with pytest.raises(Fault, match="out of bounds"):
        run_ptx(PLACES + "st.global.b32 [%rd1 + 4], %r0;", {"x": x[4:36]})


BY_PROGRAM = PLACES + "  mov.u32 %r1, %ctaid.x;\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("st.global.b32 [%rd1], %r1;", "program . stores to element 0 of x, which program . stores to"),
        ("st.global.b32 [%rd1], 7;", "program . stores to element 0 of x, which program . stores to"),
        (
            "setp.eq.s32 %p0, %r1, 0;\n @%p0 st.global.b32 [%rd1], %r0;\n @!%p0 ld.global.b32 %r2, [%rd1];",
            "program 1 loads element 0 of x, which program 0 stores to",
        ),
        (
            "ld.global.b32 %r2, [%rd1];\n setp.eq.s32 %p0, %r1, 1;\n @%p0 st.global.b32 [%rd1], %r0;",
            "a program stores to element 0 of x, which another program loads",
        ),
    ],
)
@pytest.mark.parametrize("warps", [1, 16])
@pytest.mark.parametrize("at_once", [8192, 32])
def test_two_programs_that_meet_at_an_address_are_refused(monkeypatch, lines, message, warps, at_once):
    """In one batch of programs and in two."""
    monkeypatch.setattr("tools.ptx_machine.launch.THREADS_AT_ONCE", at_once)
    with pytest.raises(Fault, match=message):
        run_ptx(BY_PROGRAM + lines, {"x": np.zeros(512, u32)}, programs=2, warps=warps)


def test_programs_may_read_the_same_and_write_apart():
    x, out = np.arange(32, dtype=u32), np.zeros(64, u32)
    body = BY_PROGRAM + "ld.global.b32 %r2, [%rd1];\n shl.b32 %r3, %r1, 7;\n add.s32 %r3, %r3, %r0;\n"
    body += "cvt.u64.u32 %rd2, %r3;\n add.s64 %rd2, %rd2, %rd_out;\n st.global.b32 [%rd2], %r2;"
    run_ptx(body, {"x": x, "out": out}, programs=2)
    assert out.tolist() == [*range(32), *range(32)]


def test_atomics_of_programs_add_up():
    x, out = np.zeros(1, u32), np.zeros(64, u32)
    body = BY_PROGRAM + "atom.global.gpu.relaxed.add.u32 %r2, [%rd_x], 2;\n shl.b32 %r3, %r1, 7;\n"
    body += "add.s32 %r3, %r3, %r0;\n cvt.u64.u32 %rd2, %r3;\n add.s64 %rd2, %rd2, %rd_out;\n"
    run_ptx(body + "st.global.b32 [%rd2], %r2;", {"x": x, "out": out}, programs=2)
    assert x.tolist() == [128]
    assert sorted(out.tolist()) == list(range(0, 128, 2))


EXCHANGE = """
  xor.b32 %r1, %r0, 128;
  st.shared.b32 [%r0], %tid;
  {first}
  ld.shared.b32 %r2, [%r1];
  {second}
  st.shared.b32 [%r0], %r2;
  st.global.b32 [%rd1], %r2;
"""


def test_warps_exchange_through_shared_memory_with_barriers():
    x = np.zeros(64, u32)
    run_ptx(PLACES + EXCHANGE.format(first="bar.sync 0;", second="bar.sync 0;"), {"x": x}, warps=2, shared=256)
    assert x.tolist() == [*range(32, 64), *range(32)]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("", "bar.sync 0;", "race: warp . reads shared cell .*, which warp . wrote"),
        ("bar.sync 0;", "", "race: warp . writes shared cell .*, which another warp has read"),
        ("bar.warp.sync -1;", "bar.sync 0;", "race"),
    ],
)
def test_a_missing_barrier_is_a_race(first, second, message):
    with pytest.raises(Fault, match=message):
        run_ptx(PLACES + EXCHANGE.format(first=first, second=second), {"x": np.zeros(64, u32)}, warps=2, shared=256)


def test_two_warps_may_write_the_same_value_and_no_other():
    both = "st.shared.b32 [global_smem], {};"
    run_ptx(PLACES + both.format("7"), {"x": np.zeros(64, u32)}, warps=2, shared=4)
    later = "setp.lt.u32 %p0, %tid, 32;\n @%p0 st.shared.b32 [global_smem], 1;\n @!%p0 st.shared.b32 [global_smem], 2;"
    with pytest.raises(Fault, match="warps 0 and 1 write different values"):
        run_ptx(PLACES + later, {"x": np.zeros(64, u32)}, warps=2, shared=4)


def test_a_program_needs_a_barrier_between_warps_in_global_memory_too():
    store = PLACES + "st.global.b32 [%rd1], %tid;\n xor.b32 %r1, %r0, 128;\n cvt.u64.u32 %rd2, %r1;\n"
    load = " add.s64 %rd2, %rd2, %rd_x;\n ld.global.b32 %r2, [%rd2];\n bar.sync 0;\n st.global.b32 [%rd1], %r2;"
    x = np.zeros(64, u32)
    run_ptx(store + "bar.sync 0;\n" + load, {"x": x}, warps=2)
    assert x.tolist() == [*range(32, 64), *range(32)]
    with pytest.raises(Fault, match=r"race: warp . loads element .* of x, which warp . stored to"):
        run_ptx(store + load, {"x": np.zeros(64, u32)}, warps=2)


COPY = """
  st.shared.b32 [%r0], -1;
  cp.async.ca.shared.global [%r0], [%rd1], 4, 4;
  cp.async.commit_group;
  cp.async.ca.shared.global [%r0 + 128], [%rd1], 4, {size};
  cp.async.commit_group;
  cp.async.wait_group {left};
  ld.shared.b32 %r2, [%r0];
  ld.shared.b32 %r3, [%r0 + 128];
  add.s64 %rd2, %rd0, %rd_out;
  st.global.b32 [%rd2], %r2;
  st.global.b32 [%rd2 + 128], %r3;
"""


def test_what_cp_async_copies_is_there_once_it_is_awaited():
    out = np.zeros(64, np.int32)
    run_ptx(PLACES + COPY.format(left=0, size=4), {"x": np.full(32, 5, u32), "out": out}, shared=256)
    assert out.tolist() == [5] * 64


@pytest.mark.parametrize("left", [1, 2])
def test_what_cp_async_copies_is_not_to_be_touched_before(left):
    with pytest.raises(Fault, match=r"is used while a cp\.async is under way to it"):
        out = np.zeros(64, np.int32)
        run_ptx(PLACES + COPY.format(left=left, size=4), {"x": np.full(32, 5, u32), "out": out}, shared=256)


def test_cp_async_of_no_bytes_writes_zeros():
    out = np.ones(64, u32)
    run_ptx(PLACES + COPY.format(left=0, size=0), {"x": np.full(32, 5, u32), "out": out}, shared=256)
    assert out[32:].tolist() == [0] * 32
    with pytest.raises(Fault, match=r"cp\.async of a part"):
        run_ptx(PLACES + COPY.format(left=0, size=2), {"x": np.zeros(32, u32), "out": out}, shared=256)


def test_threads_that_part_meet_again_and_a_barrier_waits_for_all():
    x = np.zeros(64, u32)
    body = (
        PLACES
        + """
  mov.b32 %r1, %tid;
loop:
  setp.lt.u32 %p0, %r1, 3;
  @%p0 bra out;
  add.s32 %r1, %r1, -3;
  add.s32 %r2, %r2, 0;
  bra.uni loop;
out:
  st.shared.b32 [%r0], %r1;
  bar.sync 0;
  xor.b32 %r3, %r0, 128;
  ld.shared.b32 %r4, [%r3];
  st.global.b32 [%rd1], %r4;
"""
    )
    run_ptx(body, {"x": x}, warps=2, shared=256)
    assert x.tolist() == [(i ^ 32) % 3 for i in range(64)]


def test_threads_that_wait_for_nobody_are_a_deadlock():
    body = PLACES + "mbarrier.init.shared::cta.b64 [global_smem], 1;\n .reg .pred %done;\nwait:\n"
    body += " mbarrier.try_wait.parity.shared.b64 %done, [global_smem], 0;\n @!%done bra.uni wait;"
    with pytest.raises(Fault, match="deadlock in snippet: threads wait at"):
        run_ptx(body, {"x": np.zeros(32, u32)}, shared=8)
    with pytest.raises(Fault, match="no mbarrier was made at 8"):
        run_ptx(body.replace("], 0", " + 8], 0"), {"x": np.zeros(32, u32)}, shared=16)


def test_an_mbarrier_lets_threads_on_when_all_have_arrived():
    x = np.zeros(64, u32)
    body = (
        PLACES
        + """
  .reg .pred %done;
  setp.eq.s32 %p0, %tid, 0;
  @%p0 mbarrier.init.shared::cta.b64 [global_smem], 1;
  bar.sync 0;
  setp.lt.u32 %p1, %tid, 32;
  @%p1 bra wait;
  setp.eq.s32 %p2, %tid, 32;
  @%p2 mbarrier.arrive.shared::cta.b64 _, [global_smem];
  bra.uni end;
wait:
  mbarrier.try_wait.parity.shared::cta.b64 %done, [global_smem], 0;
  @!%done bra.uni wait;
  st.global.b32 [%rd1], 1;
end:
"""
    )
    run_ptx(body, {"x": x}, warps=2, shared=8)
    assert x.tolist() == [1] * 32 + [0] * 32
