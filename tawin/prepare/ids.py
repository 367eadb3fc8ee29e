"""Ids as logs write them: which spellings say that there is none, and whole numbers that pandas has made floats."""

from __future__ import annotations

import re

MAX_ID_LENGTH = 1000
MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "none", "None", "NONE", "\\N", "NA", "N/A", "n/a", "#N/A", "<NA>")
)
"""What pandas, R, spreadsheets and databases write for a value that is not there; other capitals may be a name."""
MISSING_TITLES = MISSING - {"None", "NONE", "Null", "NA"}
"""The same for titles; the rest are names of songs and films."""
_WHOLE_FLOAT = re.compile(r"(0|-?[1-9][0-9]*)\.0+")
_ROUNDED = re.compile(r"-?[0-9](\.[0-9]+)?[eE]\+[0-9]+")


class MissingError(ValueError):
    """A row without a user or an item. It is counted apart: nothing is wrong with the file."""

    def __init__(self, name: str) -> None:
        super().__init__(f"expected the {name}, got none")
        self.name = name


def plain_id(name: str, text: str) -> str:
    """An id as it is kept: 7.0 is 7. `name`: user or item, for messages.

    Raises:
        MissingError: there is none.
        ValueError: no id; half of a surrogate pair, which JSON can spell, is in no file of text, and 4.00638E+12 may
            have been any of ten million ids before a spreadsheet rounded them.
    """
    if text in MISSING:
        raise MissingError(name)
    if len(text) > MAX_ID_LENGTH:
        raise ValueError(f"expected the {name} in at most {MAX_ID_LENGTH} characters, got {len(text)}")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"expected the {name} in whole characters, got {text[:80]!r}")
    if "+" in text and _ROUNDED.fullmatch(text):
        raise ValueError(f"expected the {name} with all its digits, got the rounded {text!r}; export the ids as text")
    if text.endswith("0") and _WHOLE_FLOAT.fullmatch(text):
        return text.partition(".")[0]
    return text
