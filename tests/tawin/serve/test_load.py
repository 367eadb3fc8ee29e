"""What a config stands for: data from a folder, through a cache, or made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tawin.config import Config, SplitConfig
from tawin.config.presets import PRESETS
from tawin.data.dataset import save_dataset
from tawin.data.synthetic import make_synthetic
from tawin.serve.load import load_data


def test_a_data_cache_holds_the_data_and_changes_nothing_of_it(tmp_path: Path) -> None:
    synthetic = dataclasses.replace(PRESETS["demo"].synthetic, num_users=30)
    save_dataset(make_synthetic(synthetic, 0), tmp_path / "data")
    plain = Config(data=str(tmp_path / "data"), split=SplitConfig(rl_targets=2))
    cached = dataclasses.replace(plain, data_cache=str(tmp_path / "cache"))
    (loaded, split), (mapped, mapped_split) = load_data(plain), load_data(cached)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert [items.tolist() for items in mapped.sequences] == [items.tolist() for items in loaded.sequences]
    assert mapped_split.rl.all_targets().tolist() == split.rl.all_targets().tolist()
    assert split.rl.all_targets().shape == (30, 2)
