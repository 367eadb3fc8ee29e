"""Items <-> tokens: what an item is as tokens, prompts and labels made of them, semantic ids, tokenizers."""

from .catalog import Catalog, load_catalog

__all__ = ["Catalog", "load_catalog"]
