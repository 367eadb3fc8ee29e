"""Interactions: read from a data folder or made up, split, kept as ragged arrays."""

from .dataset import load_dataset

__all__ = ["load_dataset"]
