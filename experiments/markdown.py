"""Records as markdown: a table a data set, then its rows against the baseline.

Values are "mean ± sample standard deviation" over seeds, without leading zeros; the best mean of a column is bold. A
row that has fewer seeds than another says how many; a row without a record reads "not run", a figure that a row's
records do not hold "-". A data set whose records hold no ranks (a theory cell's) lists their values instead. Names are
text: a "|" in one does not end its cell.

Knows nothing of figures and files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .plan import Row, Table
from .statistics import (
    Comparison,
    Spread,
    compare_rows,
    is_per_user,
    part_of,
    records_by_seed,
    spread,
    values_by_seed,
)
from .store import Record

NOT_RUN = "not run"
_LONG = 16  # lines of a comparison, or of a list of figures, above which it is folded


def number(value: float, digits: int = 4) -> str:
    """ ".0545", "1.0000", "-.0012"."""
    rounded = round(value, digits) + 0.0  # no -.0000
    return re.sub(r"^(-?)0\.", r"\1.", f"{rounded:.{digits}f}")


def signed(value: float) -> str:
    """ "+.0012", "-.0012", ".0000"."""
    text = number(value)
    return f"+{text}" if text.strip("-0.") and value > 0 else text


def p_value(p: float | None) -> str:
    """Two digits: ".29", ".007", "< .0001"; "-" where there is none."""
    if p is None:
        return "-"
    return "< .0001" if p < 1e-4 else re.sub(r"^0\.", ".", f"{p:.2g}")


def mean_and_deviation(figure: Spread) -> str:
    """ ".0545 ± .0014"; without a deviation, the mean alone."""
    return number(figure.mean) + ("" if figure.deviation is None else f" ± {number(figure.deviation)}")


def metric_title(metric: str) -> str:
    """ "valid recall@3" -> "valid Recall@3"; test goes without saying."""
    part, name = part_of(metric)
    title = name.replace("recall", "Recall").replace("ndcg", "NDCG")
    return title if part == "test" else f"{part} {title}"


def ordered_rows(table: Table, data: str) -> list[Row]:
    """The rows of a data set; those of a sweep over numbers by value, standing where the first of them stood."""
    rows = [row for row in table.rows if data in row.data]
    places: dict[tuple[str, ...], int] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(row.swept) or (row.name,), place)

    def key(row: Row) -> tuple[int, list[float]]:
        values = list(row.swept.values())
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return places[tuple(row.swept) or (row.name,)], values if numeric else []

    return sorted(rows, key=key)


def tables(table: Table, records: Sequence[Record]) -> str:
    """All data sets of a table in turn, a heading each, then where the cells were run."""
    sections = [f"### {data}\n\n{data_tables(table, records, data)}" for data in table.data]
    return "\n\n".join([*sections, origin(table, records)]) + "\n"


def data_tables(table: Table, records: Sequence[Record], data: str) -> str:
    """The tables of one data set."""
    own = [record for record in records if record.data == data]
    if not table.metrics or (own and not any(record.ranks for record in own)):
        return values_table(table, own, data)
    parts = [metrics_table(table, own, data)]
    against = baselines(table, data)
    by_metric = [compare_rows(own, data, against, metric) for metric in table.metrics]
    by_row = sorted((each for found in by_metric for each in found), key=lambda each: list(against).index(each.row))
    return "\n\n".join([*parts, comparison_table(by_row)] if by_row else parts)


def baselines(table: Table, data: str) -> dict[str, str]:
    """The rows of a data set that are tested, and the row that each is tested against."""
    against = {row.name: row.baseline or table.baseline for row in ordered_rows(table, data)}
    return {row: baseline for row, baseline in against.items() if baseline not in (None, row)}


def metrics_table(table: Table, records: Sequence[Record], data: str) -> str:
    """Rows x metrics of one data set."""
    runs = {row.name: records_by_seed(records, data, row.name) for row in ordered_rows(table, data)}
    most = max(map(len, runs.values()), default=0)
    columns = []
    for metric in table.metrics:
        found = {name: list(values_by_seed(records, data, name, metric).values()) for name in runs}
        spreads = {name: spread(values) for name, values in found.items() if values}
        best = number(max((each.mean for each in spreads.values()), default=0.0))
        # What is printed decides, so that of two rows that read the same both are the best.
        columns.append(
            {
                name: f"**{mean_and_deviation(each)}**" if number(each.mean) == best else mean_and_deviation(each)
                for name, each in spreads.items()
            }
        )
    lines = [
        [_counted(name, len(run), most), *(column.get(name, "-" if run else NOT_RUN) for column in columns)]
        for name, run in runs.items()
    ]
    about = f"Mean ± sample standard deviation over {_count(most, 'seed')}; {_users(records, table)}." if most else ""
    return "\n\n".join(
        filter(None, [about, markdown_table(["", *(metric_title(metric) for metric in table.metrics)], lines)])
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """A line a comparison; folded where they are many."""
    most = max(len(each.seeds) for each in comparisons)
    rivals = {each.baseline for each in comparisons}
    header = ["row", "metric", "difference", "95 % interval", "p", "p (Holm)", "p over seeds", "users gained / lost"]
    lines = []
    for each in comparisons:
        name = each.row if len(rivals) == 1 else f"{each.row} against {each.baseline}"
        line = [_counted(name, len(each.seeds), most), metric_title(each.metric), signed(each.difference)]
        users = each.over_users
        if users is None:
            lines.append([*line, "-", "-", "-", p_value(each.p_seeds), "-"])
        else:
            interval = " to ".join(map(signed, users.interval))
            ps = [p_value(p) for p in (users.p, users.p_holm, each.p_seeds)]
            lines.append([*line, interval, *ps, f"{users.gained:,} / {users.lost:,}"])
    rival = f"Against {_text(comparisons[0].baseline)}: the" if len(rivals) == 1 else "The"
    about = (
        f"{rival} same users and {_count(most, 'seed')}. Interval (bootstrap) and p (sign flips) are over users, each "
        "averaged over the seeds; Holm: corrected for the rows of this table, metric by metric; p over seeds: paired "
        "t-test; gained / lost: summed over the seeds."
    )
    text = markdown_table(header, lines)
    if len(lines) > _LONG:
        text = _folded(text, f"{len(lines)} comparisons")
    return f"{about}\n\n{text}"


def values_table(table: Table, records: Sequence[Record], data: str) -> str:
    """Every value of every row, for records that are no rankings."""
    lines = []
    most = 0
    for row in ordered_rows(table, data):
        run = list(records_by_seed(records, data, row.name).values())
        most = max(most, len(run))
        if not run:
            lines.append([row.name, NOT_RUN, "", ""])
        for name in dict.fromkeys(name for record in run for name in record.values):
            figure = spread([record.values[name] for record in run if name in record.values])
            lines.append([row.name, name, _value(figure), str(figure.seeds)])
    about = f"Mean ± sample standard deviation over {_count(most, 'seed')}.\n\n" if most else ""
    text = markdown_table(["row", "figure", "value", "seeds"], lines)
    return about + (_folded(text, f"{len(lines)} figures") if len(lines) > _LONG else text)


def _folded(text: str, title: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def origin(table: Table, records: Sequence[Record]) -> str:
    """How many cells, how long they took, where, and what is still missing."""
    if not records:
        return f"No cell of `{table.name}` has been run."
    hours = sum(record.seconds for record in records) / 3600
    machines, versions = (
        ", ".join(sorted({getattr(record, name) for record in records} - {""})) or "not recorded"
        for name in ("machine", "version")
    )
    text = f"{_count(len(records), 'cell')}, {hours:.1f} hours in all. Machine: {_text(machines)}. Code: {versions}."
    known = {row.name for row in table.rows}
    unknown = sorted({record.row for record in records} - known)
    if unknown:
        text += f" Left out, as the table has no such rows any more: {_text(', '.join(unknown))}."
    return text


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A pipe table; the texts' own pipes are escaped."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows)


def _text(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _counted(name: str, seeds: int, most: int) -> str:
    return f"{name} ({_count(seeds, 'seed')})" if 0 < seeds < most else name


def _users(records: Sequence[Record], table: Table) -> str:
    """How many users each part of the data has that a metric is of."""
    counts: dict[str, set[int]] = {part_of(metric)[0]: set() for metric in table.metrics if is_per_user(metric)}
    for record in records:
        for part in counts.keys() & record.ranks.keys():
            counts[part].add(len(record.ranks[part]))
    return ", ".join(
        f"{part}: {' or '.join(f'{count:,}' for count in sorted(sizes)) or 'unknown'} users"
        for part, sizes in counts.items()
    )


def _value(figure: Spread) -> str:
    """Four digits of the mean, two of the deviation, whatever their size."""
    texts = [f"{figure.mean:.4g}"] + ([] if figure.deviation is None else [f"{figure.deviation:.2g}"])
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", text) for text in texts)
