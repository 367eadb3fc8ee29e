"""The formats that `tawin prepare` reads, one module each: how a source is opened, and what it then gives.

A format is an object with `read_log`, which adds every interaction to a `Log`, and `read_items`, which describes the
items (`source.Source`), and a `Format` that opens one.
"""

from __future__ import annotations

from ..source import Format
from .amazon import AMAZON_2018, AMAZON_2023
from .csv import CSV
from .minionerec import MINIONEREC, RERE
from .movielens import MOVIELENS
from .parquet import PARQUET
from .s3rec import S3REC
from .yelp import YELP

FORMATS: dict[str, Format] = {
    each.name: each for each in (CSV, PARQUET, AMAZON_2018, AMAZON_2023, YELP, MOVIELENS, MINIONEREC, RERE, S3REC)
}
"""By the name on the command line, as `tawin prepare --help` lists them."""
