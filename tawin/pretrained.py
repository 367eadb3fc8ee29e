"""Which files a pretrained model is read from: what `--model` may name.

Called by `model.policy` and `catalog.tokenizer`, and by `tawin train` before anything is loaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def source_of(name_or_path: str | Path) -> dict[str, str]:
    """The arguments with which transformers' `from_pretrained` reads a model: a folder, a hub name or a GGUF file.

    A GGUF file is named itself, or is the only one in a folder without a config.json.

    Raises:
        ValueError: no such GGUF file, several in a folder, or the package gguf is missing.
    """
    path = Path(name_or_path)
    if path.suffix == ".gguf":
        files = [path]
    elif path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
    else:
        files = []
    if not files:
        return {"pretrained_model_name_or_path": str(name_or_path)}
    if len(files) > 1:
        raise ValueError(f"expected one GGUF file, got {[file.name for file in files]} in {path}; name one of them")
    if not files[0].is_file():
        raise ValueError(f"expected a GGUF file, found no {path}")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{files[0]} is read with the package gguf, found none: pip install gguf")
    return {"pretrained_model_name_or_path": str(files[0].parent), "gguf_file": files[0].name}


def missing_files(name_or_path: str) -> str | None:
    """What a model is read from and its folder or file lacks, in words; None where all is there, or for a hub name."""
    path = Path(name_or_path)
    try:
        if "gguf_file" in source_of(name_or_path):
            return None
    except ValueError as error:
        return str(error)
    if not path.is_dir():
        is_path = path.exists() or path.is_absolute() or name_or_path.startswith((".", "~")) or len(path.parts) > 2
        return "expected a model's folder, a GGUF file or a hub name, found no such folder" if is_path else None
    wanted = {
        "config.json": ("config.json",),
        "weights (*.safetensors or *.bin)": ("*.safetensors", "*.bin"),
        "tokenizer (tokenizer.json, *.model or vocab.*)": ("tokenizer.json", "*.model", "vocab.*"),
    }
    lacks = [what for what, patterns in wanted.items() if not any(any(path.glob(each)) for each in patterns)]
    return f"expected a model's folder, found no {' and no '.join(lacks)} in it" if lacks else None
