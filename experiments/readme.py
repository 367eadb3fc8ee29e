"""README's table of results, made of experiments/results: `python -m experiments.readme` writes it anew.

A column a data set, Recall@3 on test, mean ± deviation over seeds; below it the p of what RL adds. A data set has its
rows from the table `strong` where that was run on it, else from `main`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .markdown import mean_and_deviation, number, p_value
from .statistics import compare, spread, values_by_seed
from .store import Record, read_records

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results"
BEGIN, END = "<!-- results begin -->\n", "<!-- results end -->\n"
DATA = ("industrial", "office", "toys", "yelp")
METRIC = "recall@3"
BEAM, TAWIN = "GRPO, beam negatives", "TAWin, anchor 2"
TOKENS = {"strong": "", "main": ", semantic ids"}
SFT = {"strong": "SFT, all items", "main": "SFT"}  # what RL goes on from
UNTRAINED = ("Item-kNN", "Counts")


def main() -> None:
    records = [record for name in TOKENS for record in read_records(RESULTS / f"{name}.parquet")]
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), table(records)), encoding="utf-8")


def table(records: Sequence[Record]) -> str:
    """records: of the tables `strong` and `main`."""
    of = {data: _table_of(records, data) for data in DATA}
    lines = [_row("Recall@3, test", [_title(of[data], data) for data in DATA]), "|---" * (1 + len(DATA)) + "|"]
    for name in UNTRAINED:
        label = f"{name.lower().replace('knn', 'kNN')}, no training"
        lines.append(_row(label, [_figure(records, data, name) for data in DATA]))
    sasrec = [_figure(of[data], data, "SASRec") or _figure(records, data, "SASRec") for data in DATA]
    lines.append(_row("SASRec", sasrec))
    lines.append(_row("SFT", [_figure(of[data], data, SFT[of[data][0].table]) for data in DATA]))
    lines.append(_row("RL, beam negatives", [_figure(of[data], data, BEAM) for data in DATA]))
    lines.append(_row("RL, TAWin, anchor 2", [_figure(of[data], data, TAWIN) for data in DATA]))
    starts = [_p(of[data], data, BEAM, SFT[of[data][0].table]) for data in DATA]
    lines.append(_row("p, beam negatives against SFT", starts))
    lines.append(_row("p, TAWin against beam negatives", [_p(of[data], data, TAWIN, BEAM) for data in DATA]))
    return "\n".join(lines) + "\n"


def _table_of(records: Sequence[Record], data: str) -> list[Record]:
    """The records of the first table that has RL on the data set."""
    for name in TOKENS:
        own = [record for record in records if (record.table, record.data) == (name, data)]
        if any(record.row == BEAM for record in own):
            return own
    raise ValueError(f"records: expected {BEAM!r} on {data} in one of {list(TOKENS)}")


def _title(records: Sequence[Record], data: str) -> str:
    """With the number of seeds, and what writes an item where that is not one token."""
    return f"{data} ({len(values_by_seed(records, data, BEAM, METRIC))}{TOKENS[records[0].table]})"


def _row(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _figure(records: Sequence[Record], data: str, name: str) -> str:
    values = list(values_by_seed(records, data, name, METRIC).values())
    if not values:
        return ""
    return number(values[0]) if len(set(values)) == 1 else mean_and_deviation(spread(values)).replace("± ", "±")


def _p(records: Sequence[Record], data: str, row: str, baseline: str) -> str:
    """Over users, each averaged over the seeds."""
    compared = compare(records, data, row, baseline, METRIC)
    return "-" if compared is None or compared.over_users is None else p_value(compared.over_users.p)


def with_table(page: str, new: str) -> str:
    """The page with `new` between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + new + END + after


if __name__ == "__main__":
    main()
