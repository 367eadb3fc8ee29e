"""README's table of results, made of the records: `python -m experiments.readme` writes it anew.

    python -m experiments.readme                     from experiments/results
    python -m experiments.readme --data DATA         popularity and item-kNN evaluated anew first, which takes seconds

A column a data set, Recall@3 on test, mean ± deviation over seeds; below it the p of what RL adds. Rows that the RL
table has not are taken from the main table: both rank the same users.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tawin.data.dataset import load_dataset, split_leave_one_out
from tawin.data.ragged import Ragged
from tawin.evaluate.baselines import ITEM_KNN, POPULARITY, build_baselines
from tawin.evaluate.ranking import sampled
from tawin.metrics import recall_at_k
from tawin.run.atomic import write_atomically

from .markdown import mean_and_deviation, number, p_value
from .statistics import compare, spread, values_by_seed
from .store import Record, read_records

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results"
UNTRAINED = RESULTS / "untrained.json"
BEGIN, END = "<!-- results begin -->\n", "<!-- results end -->\n"
DATA = ("industrial", "office", "toys", "yelp")
METRIC = "recall@3"
MAIN = RESULTS / "main.parquet"
RL = (RESULTS / "strong.parquet", MAIN)  # the first that there is
SFT = ("SFT", "SFT, all items")  # likewise: what RL goes on from
BEAM, TAWIN = "GRPO, beam negatives", "TAWin, anchor 2"
ROWS = {"SASRec": ("SASRec",), "SFT": SFT, "RL, beam negatives": (BEAM,), "RL, TAWin, anchor 2": (TAWIN,)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder a data set, as of experiments.run")
    options = parser.parse_args(arguments)
    main_records = read_records(MAIN)
    if options.data is not None:
        write_atomically(UNTRAINED, json.dumps(untrained(options.data, main_records), indent=2) + "\n")
    rl_records = read_records(next(path for path in RL if path.exists()))
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), table(rl_records, main_records)), encoding="utf-8")


def untrained(folder: Path, records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Recall@3 of popularity and item-kNN over the users of the records, the same items left out."""
    found: dict[str, dict[str, float]] = {}
    for data in DATA:
        evaluation = next(
            record.settings["evaluation"] for record in records if (record.data, record.row) == (data, BEAM)
        )
        dataset = load_dataset(folder / data)
        split = split_leave_one_out(dataset)
        test = sampled(split.test, evaluation["test_users"], 0)
        baselines = build_baselines(Ragged.of(split.training), len(dataset.items.item_ids), None)
        left_out = evaluation["exclude_history"] in (True, "yes")
        found[data] = {
            name: recall_at_k(baselines.ranks(name, test, exclude_history=left_out), 3)
            for name in (POPULARITY, ITEM_KNN)
        }
    return found


def table(rl: Sequence[Record], others: Sequence[Record]) -> str:
    """rl: records of the SFT and RL rows; others: of the rows that those lack."""
    figures = json.loads(UNTRAINED.read_text(encoding="utf-8"))
    lines = [f"| Recall@3, test | {' | '.join(DATA)} |", "|---" * (1 + len(DATA)) + "|"]
    lines.append(_row("item-kNN, no training", [number(figures[data][ITEM_KNN]) for data in DATA]))
    for label, names in ROWS.items():
        lines.append(_row(label, [_figure(rl, others, data, names) for data in DATA]))
    lines.append(_row("p, beam negatives against SFT", [_p(rl, data, BEAM, SFT) for data in DATA]))
    lines.append(_row("p, TAWin against beam negatives", [_p(rl, data, TAWIN, (BEAM,)) for data in DATA]))
    return "\n".join(lines) + "\n"


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _figure(rl: Sequence[Record], others: Sequence[Record], data: str, names: Sequence[str]) -> str:
    for records in (rl, others):
        for name in names:
            if values := values_by_seed(records, data, name, METRIC):
                return mean_and_deviation(spread(list(values.values()))).replace("± ", "±")
    return "not run"


def _p(records: Sequence[Record], data: str, row: str, baselines: Sequence[str]) -> str:
    """Over users, each averaged over the seeds."""
    for baseline in baselines:
        compared = compare(records, data, row, baseline, METRIC)
        if compared is not None and compared.over_users is not None:
            return p_value(compared.over_users.p)
    return "-"


def with_table(page: str, new: str) -> str:
    """The page with `new` between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + new + END + after


if __name__ == "__main__":
    main()
