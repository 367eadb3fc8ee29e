"""The selection of a beam step: the children of a prompt's beams, scored and cut to the best.

A program scores a tile (some beams of one prompt) x (some children) and keeps its best keys (`candidates`,
`tl.topk`). Where all of a prompt's candidates fit one tile, it writes the result and that is the whole selection, one
launch. Else each program leaves a list of keys, children beyond a tile being walked tile by tile and shared by several
programs a beam, and lists are merged, some thousand keys a program, until one a prompt is left. Logits come from a
matrix [rows, tokens of the trie], or are dot products of hidden states and the LM-head rows of the children, made on
the way where that matrix would be too large. Knows nothing of how rows are normalised over the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import REGISTERS, launch
from ...trie import ItemTrie
from ...types import BeamStep
from ..log_prob.logsumexp import RowStatistics
from ..log_prob.tiles import Head
from .candidates import (
    MISSING,
    best_columns,
    candidate_keys,
    child_logits,
    largest_keys,
    of_beams,
    sum_parts,
    write_step,
)
from .wide_nodes import children_logsumexp_kernel

MAX_BEAM_WIDTH = 512

_KEYS_AT_ONCE = 4096  # that one program holds where it finishes a prompt or merges lists
_KEYS_OF_A_PART = 1024  # and where it leaves a list
_GATHERED_AT_ONCE = 32  # children whose LM-head rows one program reads side by side; most nodes of a deep trie have few
_GATHER_PROGRAMS = 4  # a beam, for the rare node of many children
_PROGRAMS_A_PROCESSOR = 4
_HIDDEN_AT_ONCE = 128
_LANES = 32
_COLUMN_KEYS = 4  # a thread has so many times as many where columns are cut first: it sorts few of them


class Selection(NamedTuple):
    """How the work is cut: block sizes and numbers of programs, from shapes and what the host knows of the trie."""

    children: int  # a power of two, at least the children of any node
    kept: int  # a power of two, at least the beam width: how many keys a list has
    block_w: int
    block_c: int
    groups: int  # a prompt, of block_w beams each
    splits: int  # programs that share the children of a group
    gathered: bool

    @property
    def lists(self) -> int:
        return self.groups * self.splits

    @property
    def lanes(self) -> int:
        """Children of a beam that lie side by side in a tile, one a column: as leaves the fewest keys to sort."""
        least = min(self.block_c, _LANES)
        if self.gathered:
            return least
        choices = [least * 2**i for i in range((self.block_c // least).bit_length())]
        return min(choices, key=self._sorted_by_columns)

    @property
    def by_columns(self) -> bool:
        """Whether a tile's columns are cut to the best before keys are sorted: where that halves what is sorted."""
        return not self.gathered and 2 * self._sorted_by_columns(self.lanes) <= self.block_w * self.block_c

    def _sorted_by_columns(self, lanes: int) -> int:
        """The columns, then the keys of the best; without a gain where all columns are kept."""
        columns = self.block_w * lanes
        return columns + (self.block_c // lanes * self.kept if columns >= self.kept else self.block_w * self.block_c)

    @property
    def num_warps(self) -> int:
        if self.gathered:
            return 4
        return _warps(self.block_w * self.block_c // (_COLUMN_KEYS if self.by_columns else 1))

    @property
    def max_registers(self) -> int | None:
        return None if self.gathered else REGISTERS  # its dot products take more


class RowInputs(NamedTuple):
    """What the selection reads of R = B * W beams. Of beams without children only counts is read."""

    beam_scores: torch.Tensor  # fp32 [B, W]
    first_edges: torch.Tensor  # int32 [R]
    counts: torch.Tensor  # int32 [R], children of each beam, 0 for a beam that is not expanded
    statistics: RowStatistics | None  # of the vocabulary; None: normalised over the children
    logits: torch.Tensor | None  # fp32 [R, U], before the temperature; None: computed from the head
    slots: torch.Tensor  # int32 [max_token + 1], the column of each token
    head: Head


@triton.jit
def select_children_kernel(
    beam_scores_ptr,
    first_edges_ptr,
    counts_ptr,
    edge_tokens_ptr,
    slots_ptr,
    logits_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_maxima_ptr,
    log_sums_ptr,
    maxima_ptr,
    sums_ptr,
    lists_ptr,
    step_scores_ptr,
    step_tokens_ptr,
    step_nodes_ptr,
    step_parents_ptr,
    W,
    U,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    beam_width,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    CHILDREN: tl.constexpr,
    K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BY_COLUMNS: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    program = tl.program_id(0)
    prompt = (program // (GROUPS * SPLITS)).to(tl.int64)
    # Of beams: [1, BLOCK_W, 1].
    beams = (program // SPLITS) % GROUPS * BLOCK_W + tl.arange(0, BLOCK_W)[None, :, None]
    rows = prompt * W + beams
    counts = tl.load(counts_ptr + rows, mask=beams < W, other=0)
    has_children = counts > 0
    first_edges = tl.load(first_edges_ptr + rows, mask=has_children, other=0)
    beam_scores = tl.load(beam_scores_ptr + rows, mask=has_children, other=0.0)
    if row_maxima_ptr is not None:
        row_maxima = tl.load(row_maxima_ptr + rows, mask=has_children, other=0.0)
        row_log_sums = tl.load(log_sums_ptr + rows, mask=has_children, other=0.0)
    elif maxima_ptr is not None:
        # One beam, of which there are several parts where it has more children than one tile.
        parts = rows * SPLITS + tl.arange(0, SPLITS)[None, None, :]
        maxima = tl.load(maxima_ptr + parts, mask=counts > BLOCK_C, other=float("-inf"))
        sums = tl.load(sums_ptr + parts, mask=counts > BLOCK_C, other=0.0)
        row_maxima, row_log_sums = sum_parts(maxima, sums, scale)

    best = tl.full([K], MISSING, dtype=tl.int64)
    first_tile = (program % SPLITS) * BLOCK_C
    places = tl.arange(0, BLOCK_C // LANES)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
    for start in range(first_tile, tl.max(counts), SPLITS * BLOCK_C):
        children = start + places
        logits = child_logits(
            logits_ptr,
            slots_ptr,
            hidden_ptr,
            weight_ptr,
            bias_ptr,
            edge_tokens_ptr,
            rows,
            first_edges,
            counts,
            children,
            U,
            H,
            stride_hidden_row,
            stride_weight_row,
            BLOCK_H,
        )
        if row_maxima_ptr is not None:
            maximum, log_sum = row_maxima, row_log_sums
        else:
            maximum, log_sum = sum_parts(logits, tl.full(logits.shape, 1.0, dtype=tl.float32), scale)
            if maxima_ptr is not None:
                maximum = tl.where(counts > BLOCK_C, row_maxima, maximum)
                log_sum = tl.where(counts > BLOCK_C, row_log_sums, log_sum)
        keys = candidate_keys(logits, maximum, log_sum, scale, beam_scores, beams, counts, children, CHILDREN)
        if BY_COLUMNS:
            # Sorting is what a selection takes its time for. The K best lie in the K columns with the best maxima,
            # whose keys are made again.
            columns = tl.ravel(tl.max(keys, 0))
            none, local, lanes = best_columns(columns, K, CHILDREN, BLOCK_W, LANES)
            best_beams = (program // SPLITS) % GROUPS * BLOCK_W + local
            best_rows = prompt * W + best_beams
            best_counts = tl.load(counts_ptr + best_rows, mask=none == 0, other=0)
            best_children = start + tl.arange(0, BLOCK_C // LANES)[:, None, None] * LANES + lanes
            best_logits = child_logits(
                logits_ptr,
                slots_ptr,
                hidden_ptr,
                weight_ptr,
                bias_ptr,
                edge_tokens_ptr,
                best_rows,
                tl.load(first_edges_ptr + best_rows, mask=none == 0, other=0),
                best_counts,
                best_children,
                U,
                H,
                stride_hidden_row,
                stride_weight_row,
                BLOCK_H,
            )
            keys = candidate_keys(
                best_logits,
                of_beams(maximum, local, K, BLOCK_W),
                of_beams(log_sum, local, K, BLOCK_W),
                scale,
                tl.load(beam_scores_ptr + best_rows, mask=none == 0, other=0.0),
                best_beams,
                best_counts,
                best_children,
                CHILDREN,
            )
        own_best = largest_keys(tl.ravel(keys), K)
        # Of two descending lists, the larger of each key and its opposite are the K largest of both.
        best = own_best if CHILDREN <= BLOCK_C else tl.bitonic_merge(tl.maximum(best, tl.flip(own_best, 0)), 0, True)

    if lists_ptr is not None:
        tl.store(lists_ptr + program.to(tl.int64) * K + tl.arange(0, K), best)
    else:
        write_step(
            best,
            prompt,
            first_edges_ptr,
            edge_tokens_ptr,
            step_scores_ptr,
            step_tokens_ptr,
            step_nodes_ptr,
            step_parents_ptr,
            W,
            beam_width,
            CHILDREN,
            K,
        )


@triton.jit(do_not_specialize=["num_lists", "num_merged"])
def merge_lists_kernel(
    lists_ptr,
    merged_ptr,
    first_edges_ptr,
    edge_tokens_ptr,
    step_scores_ptr,
    step_tokens_ptr,
    step_nodes_ptr,
    step_parents_ptr,
    num_lists,
    num_merged,
    W,
    beam_width,
    CHILDREN: tl.constexpr,
    K: tl.constexpr,
    FAN: tl.constexpr,
):
    program = tl.program_id(0)
    prompt = (program // num_merged).to(tl.int64)
    first = (program % num_merged) * FAN
    keys = tl.arange(0, FAN * K)
    is_key = first + keys // K < num_lists
    lists = tl.load(lists_ptr + (prompt * num_lists + first) * K + keys, mask=is_key, other=MISSING)
    best = tl.topk(lists, K)
    if merged_ptr is not None:
        tl.store(merged_ptr + program.to(tl.int64) * K + tl.arange(0, K), best)
    else:
        write_step(
            best,
            prompt,
            first_edges_ptr,
            edge_tokens_ptr,
            step_scores_ptr,
            step_tokens_ptr,
            step_nodes_ptr,
            step_parents_ptr,
            W,
            beam_width,
            CHILDREN,
            K,
        )


def _warps(keys: int) -> int:
    """Eight keys a thread (four on AMD): sorting takes registers, and twice that left one program a processor."""
    return max(1, min(16, keys // 256))


def plan_selection(B: int, W: int, max_children: int, beam_width: int, processors: int, *, gathered: bool) -> Selection:
    """Block sizes and programs for B prompts of W >= 1 beams."""
    children = triton.next_power_of_2(max_children)
    kept = max(2, triton.next_power_of_2(beam_width))  # tl.topk of a single key fails in the interpreter
    width = triton.next_power_of_2(W)
    if gathered:
        block_c = min(children, _GATHERED_AT_ONCE)
        splits = min(triton.next_power_of_2(triton.cdiv(max_children, block_c)), _GATHER_PROGRAMS)
        return Selection(children, kept, 1, block_c, W, splits, True)
    if width * children <= _KEYS_AT_ONCE:
        return Selection(children, kept, width, children, 1, 1, False)
    # A list shorter than its tile is what makes the lists fewer than the candidates.
    tile = max(_KEYS_OF_A_PART, min(4 * kept, _KEYS_AT_ONCE))
    block_c = min(children, tile)
    block_w = min(width, tile // block_c)
    groups = triton.cdiv(W, block_w)
    wanted = triton.next_power_of_2(triton.cdiv(_PROGRAMS_A_PROCESSOR * processors, B * groups))
    return Selection(children, kept, block_w, block_c, groups, min(children // block_c, wanted), False)


def select_children(rows: RowInputs, trie: ItemTrie, selection: Selection, step: BeamStep) -> None:
    """Write the best children of each prompt's beams into `step` ([B, beam_width], contiguous). Unchecked."""
    B, W = rows.beam_scores.shape
    hidden, weight, bias, temperature = rows.head
    lists: torch.Tensor | None = None
    if selection.lists > 1:
        size = (B, selection.lists, selection.kept)
        lists = torch.empty(size, dtype=torch.int64, device=rows.beam_scores.device)
    sources: dict[str, Any] = {
        "edge_tokens_ptr": trie.edge_tokens,
        "slots_ptr": rows.slots,
        "logits_ptr": rows.logits,
        "hidden_ptr": hidden,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "first_edges_ptr": rows.first_edges,
        "counts_ptr": rows.counts,
        "U": 0 if rows.logits is None else rows.logits.shape[1],
        "H": hidden.shape[1],
        "scale": 1.0 / float(temperature),
        "stride_hidden_row": hidden.stride(0),
        "stride_weight_row": weight.stride(0),
        "SPLITS": selection.splits,
        "BLOCK_C": selection.block_c,
        "LANES": selection.lanes,
        "BLOCK_H": _HIDDEN_AT_ONCE,
    }
    results: dict[str, Any] = {
        "first_edges_ptr": rows.first_edges,
        "edge_tokens_ptr": trie.edge_tokens,
        "step_scores_ptr": step.scores,
        "step_tokens_ptr": step.tokens,
        "step_nodes_ptr": step.nodes,
        "step_parents_ptr": step.parents,
        "W": W,
        "beam_width": step.scores.shape[1],
        "CHILDREN": selection.children,
        "K": selection.kept,
    }

    maxima = sums = None
    if rows.statistics is None and selection.block_c < selection.children:
        maxima, sums = (torch.empty(B * W, selection.splits, device=rows.beam_scores.device) for _ in range(2))
        launch(
            children_logsumexp_kernel,
            (B * W * selection.splits,),
            num_warps=selection.num_warps,
            max_registers=selection.max_registers,
            maxima_ptr=maxima,
            sums_ptr=sums,
            **sources,
        )
    launch(
        select_children_kernel,
        (B * selection.lists,),
        num_warps=selection.num_warps,
        max_registers=selection.max_registers,
        beam_scores_ptr=rows.beam_scores,
        row_maxima_ptr=None if rows.statistics is None else rows.statistics.maxima,
        log_sums_ptr=None if rows.statistics is None else rows.statistics.log_sums,
        maxima_ptr=maxima,
        sums_ptr=sums,
        lists_ptr=lists,
        GROUPS=selection.groups,
        BLOCK_W=selection.block_w,
        BY_COLUMNS=selection.by_columns,
        **{**sources, **results},
    )
    while lists is not None:
        lists = _merge(lists, results)


def _merge(lists: torch.Tensor, results: dict[str, Any]) -> torch.Tensor | None:
    """Fewer lists a prompt (int64 [B, lists, K]); None once there was one left and it is written."""
    B, num_lists, kept = lists.shape
    fan = min(triton.next_power_of_2(num_lists), max(2, _KEYS_AT_ONCE // kept))
    num_merged = triton.cdiv(num_lists, fan)
    merged = None
    if num_merged > 1:
        merged = torch.empty(B, num_merged, kept, dtype=torch.int64, device=lists.device)
    launch(
        merge_lists_kernel,
        (B * num_merged,),
        num_warps=_warps(fan * kept),
        max_registers=REGISTERS,
        lists_ptr=lists,
        merged_ptr=merged,
        num_lists=num_lists,
        num_merged=num_merged,
        FAN=fan,
        **results,
    )
    return merged
