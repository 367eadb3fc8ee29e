"""What `bench.scale.data_walk` measures is a whole walk over the data that it says it drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from bench.scale import data_walk
from tawin.config import SplitConfig
from tawin.data.dataset import load_dataset, split_leave_one_out, training_windows
from tawin.data.ragged import Ragged


def test_every_window_and_prompt_is_walked_once(tmp_path: Path) -> None:
    figures = data_walk.measure(tmp_path, interactions=2_000, items=100)
    dataset = load_dataset(tmp_path / "data")
    lengths = Ragged.of(dataset.sequences).lengths
    assert lengths.sum() == figures["interactions"] == 2_000
    assert len(lengths) == figures["users"] and dataset.users_left_out == 0

    max_history = SplitConfig().max_history
    split = split_leave_one_out(dataset, max_history=max_history)
    windows, _ = training_windows(split.sft, max_history)
    for found, sequences in zip(figures["walks"], (windows, Ragged.of(split.rl.histories)), strict=True):
        assert found["sequences"] == len(sequences)
        assert found["interactions"] == sequences.lengths.sum()
        # Four tokens an item (semantic ids are distinct), and one before every sequence.
        assert found["tokens"] == 4 * sequences.lengths.sum() + len(sequences)
        shares = [reading["done"] for reading in found["readings"]]
        assert shares[-1] == 1.0 and shares == sorted(set(shares))
        assert all(0 < reading["anonymous"] <= reading["resident"] for reading in found["readings"])
    assert figures["mapped_bytes"] > 4 * 2_000 and figures["trie"]["nodes"] > 100

    text = data_walk.report(figures)
    assert "2,000 interactions" in text and "training windows" in text and "RL prompts" in text
    assert json.loads(json.dumps(figures))["users"] == len(lengths)


def test_data_is_drawn_to_the_number_asked_for_over_several_batches(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(data_walk, "USERS_AT_A_TIME", 7)
    for interactions in (1_000, 1_001, 1_002, 1_003):
        data_walk.draw_data(tmp_path, interactions, 10)
        table = pq.read_table(tmp_path / "interactions.parquet")
        lengths = np.array([len(items) for items in table["item_ids"].to_pylist()])
        assert lengths.sum() == interactions
        assert lengths.min() >= data_walk.SHORTEST and lengths.max() <= data_walk.LONGEST + data_walk.SHORTEST
        assert table["user_id"].to_pylist() == list(range(len(lengths)))


def test_growth_is_against_the_first_reading() -> None:
    readings = [data_walk.Reading(share, anonymous, 9) for share, anonymous in ((0.0, 5), (0.5, 8), (1.0, 6))]
    assert data_walk.Walk("", 1, 1, 1, 1.0, readings).growth == 3
