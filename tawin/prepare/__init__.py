"""Public data sets and users' own logs, made into the data folder that the trainer reads: `tawin prepare`.

`formats` has a module per format, `readers` streams files and counts what is malformed, `log` gathers interactions,
`clean` chooses and orders them, `write` writes. Nothing here knows of tokens or models.
"""

from .formats import FORMATS
from .job import prepare
from .source import Columns, Options

__all__ = ["FORMATS", "Columns", "Options", "prepare"]
