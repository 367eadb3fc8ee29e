"""README.md as package indexes show it: what it links to in the repository is not there, so the words stay alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = r"\((?!https?://|#|mailto:)[^)]*\)"


def without_relative_links(text: str) -> str:
    """Images of the repository are left out; a link into it becomes its text; links elsewhere stay."""
    text = re.sub(r"!\[[^\]]*\]" + _RELATIVE + r"\n*", "", text)
    text = re.sub(r"<picture>.*?</picture>\n*", "", text, flags=re.DOTALL)
    return re.sub(r"\[([^\]]*)\]" + _RELATIVE, r"\1", text)


class ReadmeHook(MetadataHookInterface):
    """Called by hatchling, as pyproject.toml asks."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}
