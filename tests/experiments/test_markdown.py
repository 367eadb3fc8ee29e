"""The markdown of a table: its text, what is marked in it, what reads "not run"."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import markdown
from experiments.plan import Row
from experiments.statistics import compare_rows

from .made_records import record, sweep, table

RECORDS = [
    record("beam", 0, [0, 0, 9, -1], seconds=1800.0, machine="a machine", version="1"),
    record("beam", 1, [0, 9, 9, -1], seconds=1800.0, machine="a machine", version="1"),
    record("TAWin", 0, [0, 0, 2, -1], seconds=3600.0, machine="a machine", version="2"),
]


def test_a_table_reads_as_it_should():
    made = table("beam", "TAWin", "S|DPO", baseline="beam", metrics=("recall@1", "ndcg@3"))
    assert (
        markdown.tables(made, RECORDS)
        == """\
### office

Mean ± sample standard deviation over 2 seeds; test: 4 users.

|  | Recall@1 | NDCG@3 |
| --- | --- | --- |
| beam | .3750 ± .1768 | .3750 ± .1768 |
| TAWin (1 seed) | **.5000** | **.6250** |
| S\\|DPO | not run | not run |

Against beam: the same users and 1 seed. Interval (bootstrap) and p (sign flips) are over users, each averaged \
over the seeds; Holm: corrected for the rows of this table, metric by metric; p over seeds: paired \
t-test; gained / lost: summed over the seeds.

| row | metric | difference | 95 % interval | p | p (Holm) | p over seeds | users gained / lost |
| --- | --- | --- | --- | --- | --- | --- | --- |
| TAWin | Recall@1 | .0000 | .0000 to .0000 | 1 | 1 | - | 0 / 0 |
| TAWin | NDCG@3 | +.1250 | .0000 to +.3750 | 1 | 1 | - | 1 / 0 |

3 cells, 2.0 hours in all. Machine: a machine. Code: 1, 2.
"""
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0.0545, ".0545"), (-0.0012, "-.0012"), (1.0, "1.0000"), (-0.00001, ".0000"), (12.5, "12.5000")]
)
def test_numbers_have_no_leading_zero(value, text):
    assert markdown.number(value) == text


def test_differences_have_a_sign_unless_they_round_to_nothing():
    assert [markdown.signed(value) for value in (0.00123, -0.5, 0.00001, 0.0)] == ["+.0012", "-.5000", ".0000", ".0000"]


@pytest.mark.parametrize(
    ("p", "text"), [(0.294, ".29"), (0.0071, ".0071"), (0.00002, "< .0001"), (1.0, "1"), (None, "-")]
)
def test_p_values_have_two_digits(p, text):
    assert markdown.p_value(p) == text


def test_rows_that_read_the_same_are_both_the_best():
    text = markdown.metrics_table(
        table("a", "b", metrics=("recall@1",)), [record("a", 0, [0, 5]), record("b", 0, [5, 0])], "office"
    )
    assert text.count("**.5000**") == 2


def test_the_rows_of_a_sweep_stand_in_the_order_of_their_values_and_words_in_the_order_of_the_table():
    made = table("SFT", *sweep("anchor", 10, 0, 2.5), "TAWin", *sweep("transform", "log", "identity"))
    assert [row.name for row in markdown.ordered_rows(made, "office")] == [
        "SFT", "anchor 0", "anchor 2.5", "anchor 10", "TAWin", "transform log", "transform identity",
    ]  # fmt: skip


def test_a_row_of_other_data_sets_is_not_listed():
    made = table(
        "SFT", Row("titles", "grpo", {}, ("industrial",)), data=("office", "industrial"), metrics=("recall@1",)
    )
    assert "titles" not in markdown.metrics_table(made, RECORDS[:0], "office")
    assert "| titles | not run |" in markdown.metrics_table(made, RECORDS[:0], "industrial")


def test_metrics_of_valid_say_so():
    made = dataclasses.replace(RECORDS[0], ranks={"valid": RECORDS[0].ranks["test"][:3]}, values={})
    text = markdown.metrics_table(table("beam", metrics=("valid recall@1",)), [made], "office")
    assert "valid: 3 users" in text
    assert "| valid Recall@1 |" in text
    assert "| beam | **.6667** |" in text


def test_what_a_rows_records_do_not_hold_is_no_figure():
    exact = dataclasses.replace(RECORDS[2], values={**RECORDS[2].values, "test auc exact": 0.75})
    made = table("beam", "TAWin", baseline="beam", metrics=("recall@1", "auc exact"))
    text = markdown.data_tables(made, [*RECORDS[:2], exact], "office")
    assert "| beam | .3750 ± .1768 | - |" in text
    assert "| TAWin (1 seed) | **.5000** | **.7500** |" in text
    assert "| TAWin | auc exact" not in text  # nothing to compare it with


def test_comparisons_with_several_rows_name_them():
    records = [record(row, 0, [0, 1]) for row in ("a", "b", "c", "d")]
    found = compare_rows(records, "office", {"b": "a", "d": "c"}, "recall@1")
    text = markdown.comparison_table(found)
    assert text.startswith("The same users and 1 seed.")
    assert "| b against a | Recall@1 |" in text
    assert "| d against c | Recall@1 |" in text


def test_many_comparisons_are_folded():
    rows = [f"row {number}" for number in range(20)]
    records = [record(row, 0, [0, 1]) for row in ("beam", *rows)]
    text = markdown.data_tables(table("beam", *rows, baseline="beam", metrics=("recall@1",)), records, "office")
    assert "<details><summary>20 comparisons</summary>\n\n| row |" in text
    assert text.endswith("|\n\n</details>")


def test_values_of_theory_are_listed_by_row_whatever_their_size():
    cells = [
        dataclasses.replace(record("bound", seed, [0]), ranks={}, values={"gap": gap, "groups": 1024.0})
        for seed, gap in ((0, 2e-9), (1, 4e-9))
    ]
    one = dataclasses.replace(cells[0], row="correlation", values={"pearson": -0.98765})
    text = markdown.data_tables(table("bound", "correlation", "density"), [*cells, one], "office")
    assert "over 2 seeds" in text
    assert "| bound | gap | 3e-09 ± 1.4e-09 | 2 |" in text
    assert "| bound | groups | 1024 ± 0 | 2 |" in text
    assert "| correlation | pearson | -.9877 | 1 |" in text
    assert "| density | not run |  |  |" in text
    empty = markdown.data_tables(table("bound", metrics=()), [], "office")
    assert empty == "| row | figure | value | seeds |\n| --- | --- | --- | --- |\n| bound | not run |  |  |"


def test_records_of_rows_that_the_table_lost_are_named():
    text = markdown.tables(table("beam", metrics=("recall@1",)), RECORDS)
    assert "Left out, as the table has no such rows any more: TAWin." in text
    assert "No cell of `main` has been run." in markdown.tables(table("beam"), [])
