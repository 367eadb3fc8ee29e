"""What fuzzing draws for `tawin prepare`: logs in several formats, with hostile values and damaged bytes.

Either a data folder appears whole, or nothing does and a DataError or ValueError names the source or the option. A log
of plain values becomes what a loop in plain Python makes of it; of others the folder is what `load_dataset` reads, as
many users and interactions as the report says, each once and in order.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tawin.data.columns import DataError
from tawin.data.dataset import load_dataset
from tawin.prepare import Options, prepare

from .data import DAMAGES, Case, pick

Row = tuple[Any, Any, Any, Any]  # user, item, time, rating

FORMATS = ("csv", "parquet", "amazon2018", "amazon2023", "movielens", "s3rec")
_IDS = ("", " ", "007", "-0", "9" * 30, str(2**63), "ü\U0001f600", "a,b", 'q"', "x" * 5000)
_IDS += ("\ud83d", "nul\x00", "a::b", None, 3.5)
_TIMES = (-1, 0, "", "nan", "1e306", 10**400, 2**63, "2018-07-07", None, True, [1], 1.5)
_RATINGS = ("", "nan", "five", None, -1, 1e400, [5])
_LINES = ("{", "[]", "null", '{"reviewerID": 1}', ",,,,,", "\x00", "\ufeff", "a" * 3000, '"open', "1 2\t3")


def draw_rows(random: np.random.Generator, *, hostile: bool) -> list[Row]:
    """A small log: few users and items, so that they repeat, and times that are equal now and then."""
    rows: list[Row] = []
    for _ in range(int(random.integers(0, 40))):
        row: list[Any] = [
            f"u{random.integers(0, 5)}",
            f"i{random.integers(0, 6)}",
            1_500_000_000 + int(random.integers(0, 8)),
            int(random.integers(1, 6)),
        ]
        if hostile and random.random() < 0.15:
            place = int(random.integers(0, 4))
            row[place] = pick(random, (_IDS, _IDS, _TIMES, _RATINGS)[place])
        rows.append((row[0], row[1], row[2], row[3]))
    return rows


def text_of(random: np.random.Generator, name: str, rows: list[Row], *, hostile: bool) -> bytes:
    """The log in a format of text, at times with lines that are none, in another encoding, or with other line ends."""
    if name in ("amazon2018", "amazon2023"):
        fields = ("reviewerID", "asin", "unixReviewTime", "overall")
        if name == "amazon2023":
            fields = ("user_id", "parent_asin", "timestamp", "rating")
            rows = [(u, i, t * 1000 if isinstance(t, int) else t, r) for u, i, t, r in rows]
        lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
    elif name == "csv":
        lines = ["user,item,timestamp,rating", *(",".join(map(str, row)) for row in rows)]
    elif name == "movielens":
        lines = ["::".join(map(str, (user, item, rating, time))) for user, item, time, rating in rows]
    else:
        users = dict.fromkeys(str(user) for user, *_ in rows)
        lines = [" ".join([user, *(str(row[1]) for row in rows if str(row[0]) == user)]) for user in users]
    end = "\n"
    if hostile:
        for _ in range(int(random.integers(0, 3))):
            lines.insert(int(random.integers(0, len(lines) + 1)), pick(random, _LINES))
        end = pick(random, ("\n", "\n", "\r\n", "\r"))
    text = "".join(line + end for line in lines)
    encoding = pick(random, ("utf-8", "utf-8", "latin-1", "utf-16")) if hostile else "utf-8"
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def write_log(random: np.random.Generator, name: str, rows: list[Row], folder: Path, *, hostile: bool) -> Path:
    """The log as a file of its format, whose bytes are damaged at times."""
    ends = {"csv": "log.csv", "parquet": "log.parquet", "movielens": "ratings.dat", "s3rec": "log.txt"}
    path = folder / ends.get(name, "reviews.json")
    if name == "parquet":
        columns = dict(zip(("user", "item", "timestamp", "rating"), zip(*rows, strict=True), strict=False))
        arrays = {}
        for column, values in columns.items():
            try:
                arrays[column] = pa.array(values)
            except (pa.ArrowException, OverflowError, ValueError):
                arrays[column] = pa.array([str(value).encode("utf-8", "replace").decode() for value in values])
        pq.write_table(pa.table(arrays), path)
    else:
        content = text_of(random, name, rows, hostile=hostile)
        if random.random() < 0.3:
            path = path.with_name(path.name + ".gz")
            content = gzip.compress(content, 1)
        path.write_bytes(content)
    if hostile and random.random() < 0.4 and path.stat().st_size:
        path.write_bytes(pick(random, DAMAGES)(path.read_bytes(), random))
    return path


def by_loop(rows: list[Row], minimum: int, min_rating: float | None, duplicates: str) -> dict[str, list[str]]:
    """What becomes of a plain log: user -> items."""
    rows = sorted((row for row in rows if min_rating is None or row[3] >= min_rating), key=lambda row: row[2])
    seen, left = set(), []
    for user, item, time, _ in rows:
        key = (user, item) if duplicates == "first" else (user, item, time)
        if duplicates == "keep" or key not in seen:
            left.append((user, item))
        seen.add(key)
    while True:
        users, items = [user for user, _ in left], [item for _, item in left]
        kept = [row for row in left if users.count(row[0]) >= minimum and items.count(row[1]) >= minimum]
        if kept == left:
            break
        left = kept
    found: dict[str, list[str]] = {}
    for user, item in left:
        found.setdefault(user, []).append(item)
    return found


Columns = dict[str, list[Any]]


def columns_of(folder: Path) -> tuple[Columns, ...]:
    """Of items, users and interactions, as plain lists."""
    return tuple(pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("items", "users", "interactions"))


def by_source(items: Columns, users: Columns, interactions: Columns) -> dict[str, list[str]]:
    """The source's own user ids with their own item ids, oldest first."""
    item_names = dict(zip(items["item_id"], items["source_id"], strict=True))
    user_names = dict(zip(users["user_id"], users["source_id"], strict=True))
    return {
        user_names[user]: [item_names[item] for item in row]
        for user, row in zip(interactions["user_id"], interactions["item_ids"], strict=True)
    }


def require_folder(folder: Path, report: dict[str, Any]) -> dict[str, list[str]]:
    """That it is what the report says and the trainer reads; gives what it holds `by_source`."""
    read = load_dataset(folder)
    items, users, interactions = columns_of(folder)
    counts = report["counts"]["after_k_core"]
    assert len(set(items["source_id"])) == len(items["source_id"]) == len(set(items["item_id"]))
    assert len(set(users["source_id"])) == len(users["source_id"]) == counts["users"]
    assert sum(map(len, interactions["item_ids"])) == counts["interactions"]
    assert len(read.user_ids) + read.users_left_out == counts["users"]
    for times in interactions.get("times", []):
        assert times == sorted(times)
    return by_source(items, users, interactions)


def prepare_case() -> Case:
    """`prepare` on a file or on the folder around it."""
    root = tempfile.TemporaryDirectory(prefix="fuzz-prepare-")
    source, out = Path(root.name) / "source", Path(root.name) / "out"

    def case(random: np.random.Generator) -> str:
        for folder in (source, out):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        name, hostile = pick(random, FORMATS), random.random() < 0.7
        has_times = name != "s3rec"  # whose lines are in order
        rows = draw_rows(random, hostile=hostile)
        path = write_log(random, name, rows, source, hostile=hostile)
        minimum, duplicates = int(random.integers(0, 4)), pick(random, ("keep", "drop", "first"))
        min_rating = 3.0 if random.random() < 0.3 and has_times else None
        options = Options(
            min_interactions=minimum,
            duplicates=duplicates,
            min_rating=min_rating,
            max_malformed=pick(random, (0.0, 0.01, 1.0)),
        )
        takes_folder = has_times and random.random() < 0.3
        is_known = not hostile and has_times
        expected = by_loop(rows, minimum, min_rating, duplicates) if is_known else {}
        try:
            report = prepare(name, source if takes_folder else path, out, options)
        except (DataError, ValueError) as error:
            assert str(source) in str(error) or str(error).startswith("--"), error
            assert not out.exists(), "refused, and yet a folder is there"
            assert [left.name for left in source.parent.iterdir()] == ["source"], "refused, and something is left"
            assert not is_known or max(map(len, expected.values()), default=0) < 3, error
            return "refused"
        found = require_folder(out, report)
        if is_known:
            assert found == expected, f"{found}, expected {expected}"
        return "passed"

    case.folder = root  # type: ignore[attr-defined]  # lives as long as the case
    return case
