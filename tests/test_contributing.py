"""CONTRIBUTING's recipes, one of each, through the public seams: nothing of the package is edited."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from tawin_kernels import group_advantages, grpo_loss, tawin_grpo_loss
from tawin_kernels.ops.loss.types import LOSS_KINDS, LossKind
from torch import Tensor
from transformers import Qwen2Config

from tawin.cli import main
from tawin.model.attention.masks import LAYER_KINDS, model_mask
from tawin.prepare import FORMATS, prepare
from tawin.prepare.log import Log
from tawin.prepare.readers.lines import Reading
from tawin.prepare.source import Format, Item, Options
from tawin.rl.rewards import REWARDS, Candidates
from tawin.run.processes import Processes, Sum

ROOT = Path(__file__).parents[1]
KINDS = ["full_attention", "chunked_attention"]


def test_the_files_that_the_recipes_name_are_there_and_hold_what_they_say() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(rows) == 7  # the heading and six recipes
    for row in rows[1:]:
        _, _, file, how, _ = row.split("|")
        path = ROOT / file.strip(" `").replace("NAME.py", "__init__.py")
        assert path.is_file(), path
        for table in re.findall(r"`([A-Z_]{5,})`", how):
            assert f"\n{table}: dict" in path.read_text(encoding="utf-8"), (table, path)


TINY = """--synthetic.num-users=60 --synthetic.num-items=24 --synthetic.num-clusters=4 --catalog.codes=8 --sft.epochs=1
 --policy.hidden-size=16 --policy.layers=1 --policy.heads=2 --policy.intermediate-size=24 --grpo.steps=2
 --grpo.batch-size=8 --grpo.group-size=4 --tracking.to=none"""


def test_a_reward_that_looks_at_titles_trains_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_report: None
) -> None:
    seen = []

    def short_titles(candidates: Candidates) -> Tensor:
        """1 for a target; less than 0 the longer the title is."""
        titles = candidates.catalog.titles
        assert titles is not None and candidates.histories is not None
        seen.append(len(candidates.histories))
        lengths = [[len(titles[item] or "") if item >= 0 else 0 for item in row] for row in candidates.items.tolist()]
        return torch.where(candidates.is_target, 1.0, -torch.tensor(lengths) / 100.0)

    monkeypatch.setitem(REWARDS, "short titles", short_titles)
    main(["train", *TINY.split(), "--grpo.reward=short titles", "--out", str(tmp_path / "run")])
    assert seen == [8, 8]
    with pytest.raises(SystemExit, match=r"grpo.reward: expected one of 'binary', 'ranking', 'short titles', got 'x'"):
        main(["train", *TINY.split(), "--grpo.reward=x", "--out", str(tmp_path / "other")])


def test_a_loss_type_that_is_a_new_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    # GSPO's ratio per completion, and all tokens alike as in DAPO.
    monkeypatch.setitem(LOSS_KINDS, "sequence_dapo", LossKind("tokens", sequence_level=True))
    log_probs = -torch.rand(2, 3, 4)
    mask = torch.tensor([True, True, True, False]).expand(2, 3, 4)
    old, advantages = log_probs - torch.randn(2, 3, 4), torch.randn(2, 3)
    found = grpo_loss(log_probs, mask, advantages, old_log_probs=old, loss_type="sequence_dapo")  # type: ignore[arg-type]
    same = grpo_loss(log_probs, mask, advantages, old_log_probs=old, loss_type="dapo", importance_level="sequence")
    torch.testing.assert_close(found.loss, same.loss)


def test_a_weighting_of_ones_own_is_handed_over_as_advantages() -> None:
    hidden, head = torch.randn(2, 4, 1, 8), torch.randn(11, 8, requires_grad=True)
    token_ids, mask = torch.randint(0, 11, (2, 4, 1)), torch.ones(2, 4, 1, dtype=torch.bool)
    rewards = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    hardest_alone = group_advantages(rewards) * torch.tensor([[1.0, 3, 0, 0], [3, 0, 1, 0]])
    found = tawin_grpo_loss(hidden, head, token_ids, mask, advantages=hardest_alone)
    found.loss.backward()
    torch.testing.assert_close(found.advantages, hardest_alone)
    assert head.grad is not None and bool(head.grad.any())


def test_an_attention_kind_is_a_row_of_who_sees_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Qwen2Config(layer_types=KINDS, num_hidden_layers=2, sliding_window=2, use_sliding_window=True)
    config._attn_implementation = "sdpa"

    def nearest(config: Any, visible: Tensor, distance: Tensor) -> Tensor:
        return visible & (distance < 1)

    monkeypatch.setitem(LAYER_KINDS, KINDS[1], nearest)
    visible = torch.ones(1, 3, 3, dtype=torch.bool).tril()
    positions = torch.arange(3)[None]
    masks = model_mask(config, visible, positions, positions, torch.float32)
    assert masks[KINDS[1]][0, 0].tolist() == torch.eye(3, dtype=torch.bool).tolist()


@dataclass(frozen=True)
class Pairs:
    """A line per interaction: user>item."""

    path: Path
    items: Path | None = None

    def read_log(self, reading: Reading, log: Log) -> None:
        for line in self.path.read_text().splitlines():
            user, item = line.split(">")
            log.add_row(user, item, None, None)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        yield Item("tea", "Green tea")


def test_a_data_format_becomes_a_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "log.pairs"
    source.write_text("".join(f"{user}>{item}\n" for user in "abc" for item in ("tea", "milk", "rice")))
    monkeypatch.setitem(FORMATS, "pairs", Format("pairs", "a line each: user>item", lambda path, options: Pairs(path)))
    prepare("pairs", source, tmp_path / "DATA", Options(min_interactions=0))
    items = pq.read_table(tmp_path / "DATA" / "items.parquet").to_pydict()
    assert "Green tea" in items["title"]
    assert pq.read_table(tmp_path / "DATA" / "interactions.parquet").num_rows == 3  # users


def test_a_metric_is_summed_by_its_name() -> None:
    processes = Processes.of(Accelerator(cpu=True))
    sums = {"kept": Sum(torch.tensor(6.0), 4), "most": Sum(2.5), "none": Sum(0.0, 0)}
    assert processes.figures(sums) == {"kept": 1.5, "most": 2.5, "none": 0.0}
