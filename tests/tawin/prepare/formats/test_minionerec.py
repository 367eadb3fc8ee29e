"""The MiniOneRec and ReRe releases: windows of histories, joined to sequences again."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.data.dataset import load_dataset
from tawin.prepare.formats.minionerec import Joined

from ..folders import made, sequences, times, titles, write

SEQUENCES = {"A994": [4, 0, 0, 1, 0, 5], "A1": [2, 3, 2], "A7": [5, 4]}
TITLES = {
    0: 'HP 74, "Black" & 75',
    1: "Kid's pen",
    2: "Tape\t3/4 x 1000",
    3: "Tape",
    4: "Les Misérables",
    5: "Last",
    6: "New",
}
NAME = "Office_Products_5_2016-10-2018-11"


def sid(item: int) -> str:
    return f"<a_{item // 2}><b_{item}><c_255>"


def write_release(folder: Path, *, cap: int, parts: dict[str, range], rere: bool, name: str = NAME) -> Path:
    """Windows of at most `cap` items of history; `parts`: which places in the sequences are targets of which part."""
    for part, places in parts.items():
        path = folder / part / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if rere:
                header = "user_id,item_asins,item_asin,history_item_id,item_id,history_item_title,item_title"
                rows.writerow([*header.split(","), "history_rating", "rating", "history_timestamp", "timestamp"])
            else:
                header = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
                rows.writerow(header.split(","))
            for place in places:
                for user, items in SEQUENCES.items():
                    if place < len(items):
                        start = max(0, place - cap)
                        rows.writerow(window(user, items, start, place, rere))
    lines = (f"{TITLES[item]}\t{item}" if rere else f"{sid(item)}\t{TITLES[item]}\t{item}" for item in TITLES)
    write(folder / "info" / f"{name}.txt", *lines)
    return folder


NUMBERED = (
    "user ids are not all whole numbers without leading zeros, so the folder numbers them in the order in which they "
    "are first seen; users.parquet has the log's own as source_id"
)


def window(user: str, items: list[int], start: int, place: int, rere: bool) -> list[object]:
    history, target = items[start:place], items[place]
    history_titles, title = [TITLES[item] for item in history], TITLES[target]
    if not rere:
        return [user, history_titles, title, history, target, [sid(item) for item in history], sid(target)]
    asins = [f"B{item}" for item in history]
    stamps = [1_500_000_000 + at for at in range(start, place)]
    stars = [float(item) for item in history]
    return [
        *(user, asins, f"B{target}", history, target, history_titles, title),
        *(stars, float(target), stamps, 1_500_000_000 + place),
    ]


@pytest.mark.parametrize("cap", [2, 10])
@pytest.mark.parametrize("rere", [False, True])
def test_windows_of_all_parts_give_the_sequences_back(tmp_path: Path, cap: int, rere: bool) -> None:
    parts = {"train": range(1, 3), "valid": range(3, 4), "test": range(4, 9)}
    source = write_release(tmp_path / "Amazon", cap=cap, parts=parts, rere=rere)
    format_name = "rere" if rere else "minionerec"
    report = made(format_name, source, tmp_path / "data", min_interactions=None)
    assert sequences(tmp_path / "data") == {user: [str(item) for item in items] for user, items in SEQUENCES.items()}
    expected = {str(item): title.replace("\t", " ") for item, title in TITLES.items()}
    assert titles(tmp_path / "data") == expected  # item 6, which nobody has, too
    assert report["notes"] == [NUMBERED]
    items = pq.read_table(tmp_path / "data" / "items.parquet").to_pydict()
    if rere:
        assert times(tmp_path / "data")[0] == [1_500_000_000_000 + 1000 * place for place in range(6)]
    else:
        ids = dict(zip(items["item_id"], items["semantic_id"], strict=True))
        assert ids == {item: [item // 2, item, 255] for item in TITLES}
    dataset = load_dataset(tmp_path / "data")
    assert (len(dataset.sequences), dataset.users_left_out, len(dataset.items)) == (2, 1, 7)


def test_what_a_missing_part_leaves_out_is_said(tmp_path: Path) -> None:
    parts = {"valid": range(3, 4), "test": range(4, 9)}
    source = write_release(tmp_path / "Amazon", cap=2, parts=parts, rere=False)
    report = made("minionerec", source, tmp_path / "data")
    assert sequences(tmp_path / "data") == {"A994": ["0", "0", "1", "0", "5"]}
    assert report["notes"] == [
        "no train file: what users did before the histories of the others is missing",
        NUMBERED,
    ]


def test_a_single_file_without_an_info_file_has_titles_and_ids_of_its_own(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=False)
    made("minionerec", source / "test" / f"{NAME}.csv", tmp_path / "data")
    assert titles(tmp_path / "data") == {str(item): TITLES[item].replace("\t", " ") for item in range(6)}
    assert load_dataset(tmp_path / "data").items.semantic_ids is not None


def test_ratings_choose_in_rere(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=True)
    report = made("rere", source, tmp_path / "data", min_rating=1)
    assert sequences(tmp_path / "data")["A994"] == ["4", "1", "5"]
    assert report["counts"]["below_min_rating"] == 3


def test_malformed_rows_are_counted_by_line(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=False)
    path = source / "test" / f"{NAME}.csv"
    with path.open("a") as file:
        file.write("A1,[],x,not a list,3,[],<a_1>\n")
        file.write("A1,[],x,[1],,[],<a_1>\n")
        file.write("A1,two fields\n")
    with (source / "info" / f"{NAME}.txt").open("a") as file:
        file.write("<a_1>b\tTitle\t9\nTitle\n")
    report = made("minionerec", source, tmp_path / "data", max_malformed=0.5)
    first = len(path.read_text().splitlines()) - 2
    assert report["malformed"] == [
        f"{path}, line {first}: expected a list of numbers as history_item_id, got 'not a list'",
        f"{path}, line {first + 2}: expected 7 fields, got 2",
        f"{source / 'info' / f'{NAME}.txt'}, line 8: expected a semantic id like <a_12><b_3><c_4>, got '<a_1>b'",
        f"{source / 'info' / f'{NAME}.txt'}, line 9: expected semantic id, title, item or title, item, got 1 fields",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"A1,[2],{'4' * 1001},[1.0],2.0", "expected the item in at most 1000 characters, got 1001"),
        (f"{'A' * 1001},[2],4,[1.0],2.0", "expected the user in at most 1000 characters, got 1001"),
        (f"A1,[{'2' * 1001}],4,[1.0],2.0", "expected the item in at most 1000 characters, got 1001"),
        ("A1,[2.5],4,[1.0],2.0", "expected whole numbers as history_item_id, got '[2.5]'"),
        ("A1,[NaN],4,[1.0],2.0", "expected whole numbers as history_item_id, got '[NaN]'"),
        ("A1,[2],4,[NaN],2.0", "expected a rating (--min-rating needs one), got nan"),
        ("A1,[2],4,[1.0],good", "expected a rating (--min-rating needs one), got 'good'"),
    ],
    ids=lambda value: value[-20:],
)
def test_a_row_that_is_no_window_is_malformed_and_no_item_of_it_is_taken(
    tmp_path: Path, row: str, message: str
) -> None:
    header = "user_id,history_item_id,item_id,history_rating,rating"
    path = write(tmp_path / "rows.csv", header, "A7,[1],2,[4.0],4.0", 'A7,"[1, 2]",3,"[4.0, 4.0]",5.0', row)
    report = made("rere", path, tmp_path / "data", min_rating=1, max_malformed=0.5)
    assert report["malformed"] == [f"{path}, line 4: {message}"]
    assert sequences(tmp_path / "data") == {"A7": ["1", "2", "3"]}


def test_an_item_without_a_name_is_none_of_a_catalogue_that_windows_describe(tmp_path: Path) -> None:
    header = "user_id,history_item_id,item_id,history_item_title,item_title"
    rows = ["A7,[1],2,['x'],y", "A7,\"[1, 2]\",3,\"['x', 'y']\",z", "A7,[1],,['x'],y"]
    made("minionerec", write(tmp_path / "rows.csv", header, *rows), tmp_path / "data", max_malformed=0.5)
    assert titles(tmp_path / "data") == {"1": "x", "2": "y", "3": "z"}


def test_windows_that_describe_no_items_need_no_info_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "user_id,history_item_id,item_id", "A7,[1],2", 'A7,"[1, 2]",3')
    report = made("minionerec", path, tmp_path / "data", max_malformed=0.0)
    assert sequences(tmp_path / "data") == {"A7": ["1", "2", "3"]}
    assert report["malformed"] == [] and set(titles(tmp_path / "data").values()) == {None}


def test_a_code_that_no_integer_of_the_data_folder_holds_is_malformed(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=False)
    info = source / "info" / f"{NAME}.txt"
    with info.open("a") as file:
        file.write(f"<a_{2**31}><b_1><c_1>\tTitle\t9\n<a_{2**31 - 1}><b_1><c_1>\tTitle\t8\n")
    report = made("minionerec", source, tmp_path / "data", max_malformed=0.5)
    assert report["malformed"] == [
        f"{info}, line 8: expected codes of at most 2147483647, got '<a_2147483648><b_1><c_1>'"
    ]
    assert "8" in titles(tmp_path / "data")


def test_an_item_without_a_semantic_id_is_refused(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=False)
    info = source / "info" / f"{NAME}.txt"
    write(info, *info.read_text().splitlines()[1:])
    with pytest.raises(DataError, match=r"item 0: expected a semantic id of 3 levels, as other items have, got None"):
        made("minionerec", source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_several_data_sets_and_none_are_refused_by_name(tmp_path: Path) -> None:
    source = write_release(tmp_path / "Amazon", cap=10, parts={"test": range(1, 9)}, rere=False)
    write_release(source, cap=10, parts={"test": range(1, 9)}, rere=False, name="Toys_5")
    with pytest.raises(DataError, match=r"test: expected one file of windows, found Office.*Toys_5.csv; .* --category"):
        made("minionerec", source, tmp_path / "data")
    made("minionerec", source, tmp_path / "data", category="Toys")
    with pytest.raises(DataError, match=r"expected csv files in the folders train, valid and test, found none"):
        made("minionerec", source, tmp_path / "more", category="Books")
    with pytest.raises(DataError, match=r"absent: expected a folder with train, valid, test and info, or one csv"):
        made("minionerec", tmp_path / "absent", tmp_path / "more")
    other = write(tmp_path / "log.csv", "user,item,time", "1,2,3")
    with pytest.raises(DataError, match=r"log.csv: expected a column 'user_id' for the windows, got user, item, time"):
        made("rere", other, tmp_path / "more")


@settings(max_examples=200)
@given(items=st.lists(st.integers(0, 2), min_size=2, max_size=30), cap=st.integers(1, 12))
def test_windows_that_follow_on_each_other_join_to_the_sequence_however_often_items_repeat(
    items: list[int], cap: int
) -> None:
    joined, found = Joined(), list[str]()
    names = [str(item) for item in items]
    for place in range(1, len(names)):
        window = names[max(0, place - cap) : place + 1]
        found += window[len(window) - joined.add("u", window) :]
    assert found == names
    assert joined.gaps == 0


@given(length=st.integers(2, 40), cap=st.integers(1, 12), data=st.data())
def test_windows_left_out_are_filled_from_the_histories_or_counted_as_gaps(
    length: int, cap: int, data: st.DataObject
) -> None:
    names = [str(item) for item in range(length)]  # all different, so that what is missing is certain
    places = data.draw(st.lists(st.integers(1, length - 1), unique=True, min_size=1).map(sorted))
    joined, found = Joined(), list[str]()
    known: set[str] = set()
    for place in places:
        window = names[max(0, place - cap) : place + 1]
        known.update(window)
        found += window[len(window) - joined.add("u", window) :]
    assert found == [name for name in names if name in known]
    assert joined.gaps == sum(later - earlier > cap for earlier, later in itertools.pairwise(places))


def test_a_window_that_comes_twice_adds_nothing() -> None:
    joined = Joined()
    assert [joined.add("u", ["1", "2"]), joined.add("u", ["1", "2", "3"]), joined.add("u", ["1", "2", "3"])] == [
        2,
        1,
        0,
    ]
    assert joined.gaps == 0
