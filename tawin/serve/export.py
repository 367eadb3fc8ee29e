"""A trained run as one folder to serve from: model, tokenizer, catalogue, trie, and how to ask it.

The folder is plain Hugging Face; its README.md says what is in it and has code that asks it without tawin.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ..catalog.catalog import Catalog
from ..data.digest import read_origin
from ..run.atomic import finish_replacing, read_folder, replace_folder
from ..run.folder import RunFolder
from ..run.lock import is_in_use
from .load import DEFAULT_STAGE, SERVING_FILE, ServingOptions, best_model, evaluation_of
from .sid2pid import misfit, write_sid2pid

TRIE_FILE = "trie.safetensors"


def export(run: RunFolder, folder: Path, stage: str | None = None) -> str | None:
    """Write the best model of a run's stage ("sft" or "grpo", the default) and all it takes to serve it.

    folder: new or empty. It appears whole or not at all.

    Returns:
        Why it has no `sid2pid.json`; None where it has one.

    Raises:
        ValueError: the stage has no model yet; the folder has files in it, or is a file.
    """
    stage = stage or DEFAULT_STAGE
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "one with files in it" if folder.is_dir() else "a file"
        raise ValueError(f"{folder}: expected a new or empty folder to export to, got {what}")
    if not is_in_use(run.path):  # else training does that itself
        finish_replacing(run.checkpoints / stage)
    model, catalog, origin = best_model(run, stage), Catalog.load(run.catalog), read_origin(run.catalog)
    without_sid2pid = misfit(catalog)
    options = ServingOptions(stage, run.config.split.max_history, evaluation_of(run))

    def write(new: Path) -> None:
        def copy(folder: Path) -> None:
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(folder, new)

        read_folder(model, copy)  # training may replace it meanwhile
        _name_rope_theta(new / "config.json")
        catalog.save(new)
        if origin is not None:
            replace(origin, folder=None).save(new)
        catalog.trie.save(new / TRIE_FILE)
        (new / SERVING_FILE).write_text(options.to_json(), encoding="utf-8")
        (new / "README.md").write_text(readme(), encoding="utf-8")
        if without_sid2pid is None:
            write_sid2pid(catalog, new)

    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(folder, write)
    return without_sid2pid


def _name_rope_theta(config: Path) -> None:
    """Say it where engines look for it too: FlashRec reads the top level alone, and takes 1,000,000 where it is not."""
    values = json.loads(config.read_text(encoding="utf-8"))
    theta = (values.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and "rope_theta" not in values:
        config.write_text(json.dumps({**values, "rope_theta": theta}, indent=2) + "\n", encoding="utf-8")


def readme() -> str:
    """The README.md of an exported folder."""
    return files(__package__).joinpath("export_readme.md").read_text(encoding="utf-8")
