"""What `bench.scale.trie_build` measures is true of the trie, whatever the machine."""

from __future__ import annotations

import pytest

from bench.scale import trie_build


def test_figures_describe_the_trie_that_was_built() -> None:
    figures = trie_build.measure(items=500, codes=256, rounds=2)
    assert figures.nodes_of_levels[0] == 1 and figures.nodes_of_levels[-1] == 500
    # Two int32 offsets a node and one more, a token for each node but the root, an item id an item.
    assert figures.array_bytes == 4 * (2 * (figures.nodes + 1) + figures.nodes - 1 + 500)
    assert figures.file_bytes >= figures.array_bytes
    assert len(figures.build_seconds) == len(figures.save_seconds) == len(figures.load_seconds) == 2
    assert "500 items, 256 codes" in trie_build.report(figures)


@pytest.mark.parametrize(("items", "codes"), [(1, 1), (16, 2), (17, 3), (1_000_000, 32), (10_000_000, 57)])
def test_a_dense_catalogue_has_the_fewest_codes_that_hold_its_items(items: int, codes: int) -> None:
    assert trie_build.fewest_codes(items) == codes
    assert (codes - 1) ** 4 < items <= codes**4


def test_memory_that_is_taken_shows_in_the_peak() -> None:
    held = trie_build.reset_peak_bytes()
    taken = bytearray(b"x") * 2**26
    assert trie_build.memory_bytes("VmHWM") - held >= 0.9 * len(taken)
