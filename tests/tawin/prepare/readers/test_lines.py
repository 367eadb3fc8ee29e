"""Lines of files: compressed or not, in blocks of any size, and those that are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.prepare.readers import lines as module
from tawin.prepare.readers.lines import Reading

from ..folders import write


def read(path: Path, *, max_malformed: float = 0.5, latin_1: bool = False) -> tuple[list[tuple[int, str]], Reading]:
    reading = Reading(max_malformed=max_malformed, progress=False)
    return [(number, text) for _, number, text in reading.lines(path, latin_1=latin_1)], reading


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=12), max_size=12),
    block=st.integers(1, 9),
    is_compressed=st.booleans(),
    ends=st.booleans(),
)
def test_lines_are_those_of_a_loop_over_the_file_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], block: int, is_compressed: bool, ends: bool
) -> None:
    content = ("\n".join(texts) + "\n" * ends).encode()
    path = tmp_path / "log"
    path.write_bytes(gzip.compress(content) if is_compressed else b"x\n" + content)
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    first = [] if is_compressed else [(1, "x")]
    shift = 1 if is_compressed else 2
    expected = [(number, text) for number, text in enumerate(texts, shift) if text and not text.isspace()]
    if is_compressed and expected and expected[0][0] == 1:
        expected[0] = (1, expected[0][1].removeprefix("\ufeff"))
    found, reading = read(path)
    assert [each for each in found if each[1]] == [*first, *(each for each in expected if each[1])]
    assert reading.files[0].malformed == 0


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    found, _ = read(write(tmp_path / "log", "\ufeffuser,item", "1,2"))
    assert found == [(1, "user,item"), (2, "1,2")]


def test_a_line_that_is_no_utf_8_is_malformed_by_its_number_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "a", b"caf\xe9", "b", "", "c")
    found, reading = read(path)
    assert found == [(1, "a"), (3, "b"), (5, "c")]
    assert (reading.files[0].malformed, reading.files[0].lines) == (1, 5)
    assert reading.examples == [f"{path}, line 2: expected UTF-8, got bytes that are none"]


def test_a_line_that_is_no_utf_8_is_latin_1_where_that_is_allowed(tmp_path: Path) -> None:
    found, reading = read(write(tmp_path / "log", b"caf\xe9", "café"), latin_1=True)
    assert found == [(1, "café"), (2, "café")]
    assert reading.files[0].malformed == 0


@pytest.mark.parametrize("cut", [1, 5, 9, 60])
def test_a_gzip_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "log.gz", *(f"line {number * 7919}" for number in range(99)))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"log\.gz: expected a whole gzip file, got one that is cut off or damaged"):
        read(path)


def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "log.gz", *(f"line {number * 7919}" for number in range(99)))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # of the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"log\.gz: expected a whole gzip file"):
        read(path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"BZh9", "a bzip2 file"),
        (b"\xfd7zXZ\x00", "an xz file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"PAR1", "a parquet file; see `tawin prepare parquet --help`"),
        ("u,i".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ],
)
def test_what_is_neither_text_nor_gzip_is_named(tmp_path: Path, head: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"log: expected text, plain or gzip, got {message}"):
        read(write(tmp_path / "log", head))


def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 10)
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    assert read(write(tmp_path / "short", "x" * 90))[0] == [(1, "x" * 90)]
    with pytest.raises(DataError, match=r"expected lines of at most 100 bytes.*one object a line, not one array"):
        read(write(tmp_path / "log", "[" + "1," * 100))


def report_all(path: Path, bad: set[int], max_malformed: float) -> tuple[list[int], Reading]:
    reading, good = Reading(max_malformed=max_malformed, progress=False), []
    for count, number, _ in reading.lines(path):
        if number in bad:
            reading.report(count, number, "bad")
        else:
            good.append(number)
    return good, reading


def test_more_malformed_lines_than_allowed_are_refused_with_the_first_ten_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *["line"] * 100)
    good, reading = report_all(path, {7, 50}, max_malformed=0.02)
    assert len(good) == 98 and reading.files[0].malformed == 2
    with pytest.raises(DataError, match=r"at most 1\.0% malformed lines \(--max-malformed\), got 2 of 100") as caught:
        report_all(path, {7, 50}, max_malformed=0.01)
    assert str(caught.value).splitlines()[1:] == [f"  {path}, line 7: bad", f"  {path}, line 50: bad"]
    _, reading = report_all(path, set(range(1, 60)), max_malformed=0.9)
    assert [example.rpartition(" line ")[2] for example in reading.examples] == [f"{n}: bad" for n in range(1, 11)]


def test_a_file_of_another_format_is_refused_long_before_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *["line"] * 5000)
    with pytest.raises(DataError, match=r"got 1,000 of 1,000"):
        report_all(path, set(range(5001)), max_malformed=0.5)
    good, _ = report_all(path, set(range(2, 4000)), max_malformed=0.9)  # one good line, and it may still be one
    assert len(good) == 5000 - 3998
