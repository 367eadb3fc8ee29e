"""Plain csv of user, item and time, as people have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError
from tawin.prepare import Columns, Options

from ..folders import made, sequences, times, titles, write

ROWS = ["ann,sku-2,1700000300", "bob,sku-1,1700000100", "ann,sku-1,1700000100", "ann,sku-3,1700000200"]
EXPECTED = {"ann": ["sku-1", "sku-3", "sku-2"], "bob": ["sku-1"]}


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("user,item,timestamp", ","),
        ("userId;Item ID;Date", ";"),
        ("CUSTOMER_ID\tproduct\tts", "\t"),
        ("uid|asin|time", "|"),
    ],
)
def test_usual_names_and_delimiters_are_known(tmp_path: Path, header: str, delimiter: str) -> None:
    path = write(tmp_path / "log.csv", header, *(row.replace(",", delimiter) for row in ROWS))
    made("csv", path, tmp_path / "data")
    assert sequences(tmp_path / "data") == EXPECTED
    assert times(tmp_path / "data")[0] == [1_700_000_100_000, 1_700_000_200_000, 1_700_000_300_000]


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (Columns(user="who", item="what", time="when"), ["when,item,what,who", "3,x,b,1", "2,x,a,1", "9,y,c,1"]),
        (Columns(has_header=False), ["1,b,3", "1,a,2", "1,c,9"]),
        (Columns(has_header=False, user="2", item="4", time="1"), ["3,1,x,b", "2,1,x,a", "9,1,x,c"]),
        (Columns(has_times=False), ["user,item", "1,a", "1,b", "1,c"]),
        (Columns(has_times=False, has_header=False), ["1,a", "1,b", "1,c"]),
        (Columns(delimiter=":"), ["user:item:time", "1:b:3", "1:a:2", "1:c:9"]),
        (Columns(time_unit="ms"), ["user,item,time", "1,b,3", "1,a,2", "1,c,1700000000000"]),
        (Columns(), ["item,user,x,time", "b,1,,2018-07-08", "a,1,,2018-07-07", "c,1,,2019-01-01"]),
        (Columns(), ["\ufeffuser,item,time", '"1","b","3"', '1 , "a" ,2', "1,c,9"]),
    ],
)
def test_other_tables_are_read_as_the_options_say(tmp_path: Path, columns: Columns, lines: list[str]) -> None:
    made("csv", write(tmp_path / "log.csv", *lines, end=b"\r\n"), tmp_path / "data", columns=columns)
    found = sequences(tmp_path / "data")
    assert [[item.strip('" ') for item in items] for items in found.values()] == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("options", "lines", "message"),
    [
        ({}, ["a,b,c", "1,2,3"], r"a column for the user, got a, b, c; say --user-column NAME, or --no-header"),
        ({}, ["1,5,100", "1,6,200"], r"a column for the user, got 1, 5, 100; say --user-column NAME, or --no-header"),
        ({}, ["user,item", "1,2"], r"a column for the time, got user, item; .* --no-times does without"),
        ({"columns": Columns(user="who")}, ["user,item,time"], r"a column 'who' for the user, got user, item, time"),
        ({"min_rating": 3}, ["user,item,time", "1,2,3"], r"a column for the rating, .* say --rating-column NAME"),
        ({"columns": Columns(has_header=False, user="one")}, ["1,2,3"], r"--user-column: expected a number from 1"),
        (
            {"columns": Columns(has_header=False)},
            ["1,2", "3,4"],
            r"got 2 of 2; the first:\n.*expected more columns, got 2",
        ),
        ({}, ["user,item,time"], r"log.csv: expected interactions, got none \(0 read"),
        ({}, [], r"log.csv: expected interactions, got none"),
        (
            {},
            ["user,item,time", "1,2,3", "1,3,4"],
            r"expected users with at least 3 items, got none: of 2 interactions",
        ),
        (
            {"min_interactions": 4},
            ["user,item,time", *(f"1,{n},{n}" for n in range(9))],
            r"1 users with 9 items 0 are left where .* has to have 4",
        ),
        ({"after": "soon"}, [], r"--after: expected a date like 2018-07-07, got 'soon'"),
        ({"min_interactions": -1}, [], r"--min-interactions: expected 0 or more, got -1"),
        ({"max_malformed": 2}, [], r"--max-malformed: expected a share in \[0, 1\], got 2"),
        ({"min_rating": float("nan")}, [], r"--min-rating: expected a number, got nan"),
        (
            {"duplicates": "middle"},
            [],
            r"--duplicates: expected one of keep, drop, first, last, consecutive, got 'middle'",
        ),
        ({"columns": Columns(has_times=False), "after": "2018-01-01"}, [], r"--after: expected a source with times"),
        (
            {"columns": Columns(user="item")},
            ["user,item,time"],
            r"expected a column for the user and another for the item, got 'item' for both",
        ),
        ({}, ["user,item,Item,time"], r"expected one column 'item' for the item, got 2; rename one .*--item-column"),
        ({"items": Path("absent.csv")}, [], r"absent.csv: expected a csv of items and titles, found no such file"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, Any], lines: list[str], message: str
) -> None:
    path = write(tmp_path / "log.csv", *lines)
    with pytest.raises(ValueError, match=message):
        made("csv", path, tmp_path / "data", **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "\\t"}, r"--delimiter: expected one character, no quotation mark, got '\\\\t'; a tab is"),
        ({"delimiter": ""}, r"--delimiter: expected one character"),
        ({"delimiter": '"'}, r"--delimiter: expected one character"),
        ({"time_unit": "h"}, r"--time-unit: expected one of auto, s, ms, us, ns, got 'h'"),
    ],
)
def test_what_no_table_can_be_like_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(**options)


def test_malformed_rows_are_counted_by_line(tmp_path: Path) -> None:
    lines = [
        "user,item,time",
        *ROWS,
        "ann,sku-9",  # 6
        "ann,,1700000100",
        b"caf\xe9,sku-1,1700000100",
        "",
        "ann,sku-9,tomorrow",  # 10
        "ann,sku-9,1700000100000",
        'bob,"two',
        'lines",1700000100',
        "bob,sku-2,1700000100",
    ]
    path = write(tmp_path / "log.csv", *lines)
    report = made("csv", path, tmp_path / "data", max_malformed=0.8)
    assert [example.removeprefix(f"{path}, line ") for example in report["malformed"]] == [
        "6: expected 3 fields, as the first line has, got 2",
        "8: expected UTF-8, got bytes that are none",
        "10: expected seconds since 1970 or a date like 2018-07-07 or 2018-07-07 22:09:11, got 'tomorrow' "
        "(--time-unit or --time-format says what the times are)",
        "11: expected seconds since 1970, as most times are, got '1700000100000' "
        "(--time-unit or --time-format says what the times are)",
        "12: expected an id on one line, got one with a line break: a quotation mark is never closed",
    ]
    assert report["files"] == [{"file": "log.csv", "lines": 14, "malformed": 6, "without_item": 1}]
    assert sequences(tmp_path / "data") == {**EXPECTED, "bob": ["sku-1", "sku-2"]}


def test_a_quotation_mark_that_is_never_closed_costs_all_lines_that_it_swallows(tmp_path: Path) -> None:
    rows = [f"ann,sku-{number},{number}" for number in range(20_000)]
    rows[10_000] = 'ann,"sku,10000'
    path = write(tmp_path / "log.csv", "user,item,time", *rows)
    with pytest.raises(DataError, match=r"got [\d,]{5,} of 20,001; the first:\n.*line 10002: expected") as caught:
        made("csv", path, tmp_path / "data")
    assert "field limit" in str(caught.value)


def test_a_folder_of_parts_is_one_log_and_its_items_file_is_none_of_them(tmp_path: Path) -> None:
    source = tmp_path / "log"
    for part, row in enumerate(ROWS):
        write(source / f"part-{part}.csv.gz", "user,item,time", row)
    write(source / "_SUCCESS")
    items = write(
        source / "items.csv", "item_id,title,price", 'sku-1,"Pen,\n red",3', "sku-3,,1", "sku-4,Ink,1", "sku-2"
    )
    report = made("csv", source, tmp_path / "data", items=items, max_malformed=0.5)
    assert sequences(tmp_path / "data") == EXPECTED
    assert titles(tmp_path / "data") == {"sku-1": "Pen, red", "sku-2": None, "sku-3": None}
    assert [file["file"] for file in report["files"]] == [*(f"part-{n}.csv.gz" for n in range(4)), "items.csv"]
    assert report["malformed"] == [f"{items}, line 6: expected 3 fields and an item, got 1 fields"]
    with pytest.raises(DataError, match=r"data: expected files that end in .csv, .*, found none"):
        made("csv", tmp_path / "data", tmp_path / "more")


def test_ids_that_are_all_whole_numbers_stay_and_others_are_numbered(tmp_path: Path) -> None:
    def ids(*items: str) -> list[int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        path = write(folder / "log.csv", "user,item,time", *(f"1,{item},{n}" for n, item in enumerate(items)))
        made("csv", path, folder / "data")
        return pq.read_table(folder / "data" / "items.parquet")["item_id"].to_pylist()

    assert ids("70", "0", "-5", "999999999999999999") == [70, 0, -5, 999999999999999999]
    assert ids("70", "07", "7") == [0, 1, 2]
    assert ids("70", "+5", "7") == [0, 1, 2]
    assert ids("70", "1e3", "7") == [0, 1, 2]
    assert ids("70", "٣", "7") == [0, 1, 2]
    assert ids("70", "9" * 30, "7") == [0, 1, 2]
    assert ids("70", "-0", "0") == [0, 1, 2]


INTER = [
    "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "1\t7\t5\t1600000002.0",
    "1\t8\t1\t1600000001.0",
]
INTER += ["1\t9\t4\t1600000003.0"]
ITEM = [
    "item_id:token\tmovie_title:token_seq\tclass:token_seq",
    "7\tSeven, the\tDrama",
    "8\tEight\tDrama",
    "9\tNine\tX",
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_recbole_is_a_log_with_titles(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "ml" / f"ml.inter{suffix}", *INTER)
    write(tmp_path / "ml" / f"ml.item{suffix}", *ITEM)
    write(tmp_path / "ml" / "ml.user", "user_id:token\tage:float", "1\t30")
    made("csv", tmp_path / "ml", tmp_path / "data")
    assert sequences(tmp_path / "data") == {"1": ["8", "7", "9"]}
    assert titles(tmp_path / "data") == {"8": "Eight", "7": "Seven, the", "9": "Nine"}
    assert times(tmp_path / "data") == [[1_600_000_001_000, 1_600_000_002_000, 1_600_000_003_000]]


def test_a_file_of_recbole_is_one_too_and_its_columns_go_by_either_name(tmp_path: Path) -> None:
    log, items = write(tmp_path / "ml.inter", *INTER, "1\t6\t2\t1600000000.0"), write(tmp_path / "ml.item", *ITEM)
    for place, columns in enumerate((Columns(), Columns(user="user_id", item="item_id:token", title="movie_title"))):
        made("csv", log, tmp_path / str(place), items=items, columns=columns, min_rating=1.5)
        assert sequences(tmp_path / str(place)) == {"1": ["6", "7", "9"]}
        assert titles(tmp_path / str(place))["7"] == "Seven, the"


EVENTS = [
    f"{user},{item},{time},{kind}" for user in "ab" for time, item in enumerate("xyz") for kind in ("view", "buy")
]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_only_the_events_that_are_kept_count_and_the_others_are_named(tmp_path: Path, suffix: str) -> None:
    rows = ["user,item,time,event_type", *EVENTS, "a,q,9,view", ",q,9,view", "a,w,9, buy "]
    path = write(tmp_path / "log.csv", *rows)
    if suffix == "parquet":
        pq.write_table(pyarrow.csv.read_csv(path), tmp_path / "log.parquet")
        path = tmp_path / "log.parquet"
    columns = Columns(event="event_type", time_unit="s")
    report = made(suffix, path, tmp_path / "data", columns=columns, keep=("buy",))
    assert sequences(tmp_path / "data") == {"a": ["x", "y", "z", "w"], "b": ["x", "y", "z"]}
    assert report["counts"]["other_events"] == {"view": 8} and report["counts"]["read"] == 15
    with pytest.raises(DataError, match=r"expected interactions, got none .*not kept: 'view' 8, 'buy' 7"):
        made(suffix, path, tmp_path / "none", columns=columns, keep=("purchase",))
    with pytest.raises(DataError, match="expected a column 'kind' for the event, got user, item"):
        made(suffix, path, tmp_path / "none", columns=Columns(event="kind"), keep=("buy",))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("duplicates", "items", "weights"),
    [
        ("keep", ["x", "x", "y", "x", "z"], [0.5, 2, 0.5, 0.5, 2]),
        ("consecutive", ["x", "y", "x", "z"], [2, 0.5, 0.5, 2]),  # of a view and its purchase the purchase's
        ("first", ["x", "y", "z"], [2, 0.5, 2]),
        ("last", ["y", "x", "z"], [0.5, 2, 2]),
        ("drop", ["x", "x", "y", "x", "z"], [0.5, 2, 0.5, 0.5, 2]),
    ],
)
def test_events_weigh_what_they_are_given(
    tmp_path: Path, suffix: str, duplicates: Any, items: list[str], weights: list[float]
) -> None:
    rows = ["a,z,5,buy", "a,x,1,view", "a,x,2, buy ", "a,w,2,click", "a,y,3,view", "a,x,4,view"]
    path = write(tmp_path / "log.csv", "user,item,time,event_type", *rows)
    if suffix == "parquet":
        pq.write_table(pyarrow.csv.read_csv(path), tmp_path / "log.parquet")
        path = tmp_path / "log.parquet"
    columns = Columns(event="event_type", time_unit="s")
    report = made(
        suffix, path, tmp_path / "data", columns=columns, weights={"view": 0.5, "buy": 2.0}, duplicates=duplicates
    )
    assert sequences(tmp_path / "data") == {"a": items}
    assert pq.read_table(tmp_path / "data" / "interactions.parquet")["weights"].to_pylist() == [weights]
    assert report["options"]["weights"] == {"view": 0.5, "buy": 2.0} and report["counts"]["other_events"] == {
        "click": 1
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ("buy",)}, "--keep: expected it with --event-column"),
        ({"columns": Columns(event="kind")}, "--event-column: expected it with --keep or --weights"),
        ({"weights": {"buy": 1.0}}, "--weights: expected it with --event-column"),
        ({"columns": Columns(event="kind"), "keep": ("a",), "weights": {"a": 1.0}}, "--weights: expected it without"),
        ({"columns": Columns(event="kind"), "weights": {"a": 0.0}}, "--weights: expected names .* got a=0; events"),
        ({"columns": Columns(event="kind"), "weights": {"": 1.0}}, "--weights: expected names"),
        ({"columns": Columns(event="kind"), "weights": {"a": float("inf")}}, "--weights: expected names"),
        ({"columns": Columns(event="kind"), "keep": ("buy", "")}, "--keep: expected names of events"),
    ],
)
def test_events_are_kept_by_a_column_and_its_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_other_columns_of_the_items_are_carried_along_by_type(tmp_path: Path, suffix: str) -> None:
    log = write(
        tmp_path / "log.csv", "user,item,time", *(f"{user},00{item},{item}" for user in "ab" for item in range(3))
    )
    lines = ["sku,name,price:float,kind,title2,source_id", "002,Two,2.5,shoes,x,s", "000,Zero,,hats,y,s", "002,B,9,z,,"]
    items = write(tmp_path / f"items{suffix}", *lines)
    if suffix == ".parquet":
        text = pyarrow.csv.ConvertOptions(column_types={"sku": "string"}, strings_can_be_null=True)
        pq.write_table(pyarrow.csv.read_csv(write(tmp_path / "i.csv", *lines), convert_options=text), items)
    made("csv", log, tmp_path / "data", items=items, columns=Columns(time_unit="s"))
    table = pq.read_table(tmp_path / "data" / "items.parquet")
    assert table.column_names == ["item_id", "title", "semantic_id", "source_id", "price", "kind", "title2"]
    rows = {row["source_id"]: (row["title"], row["price"], row["kind"]) for row in table.to_pylist()}
    assert rows == {"000": ("Zero", None, "hats"), "001": (None, None, None), "002": ("Two", 2.5, "shoes")}
