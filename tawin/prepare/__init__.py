"""Public data sets and users' own logs, made into the data folder that the trainer reads: `tawin prepare`.

A module a format; `reading` streams files and counts what is malformed, `log` gathers interactions, `filter` chooses
and orders them, `folder` writes. Nothing here knows of tokens or models.
"""

from .job import FORMATS, prepare
from .source import Columns, Options

__all__ = ["FORMATS", "Columns", "Options", "prepare"]
