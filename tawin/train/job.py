"""What a run trains, made and checked before anything is written: data, split, tokenizer, catalogue, model.

Called by `cli.train`, and by the experiments, whose tables begin with the same jobs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog, build_catalog, make_tokenizer
from ..catalog.extension import Extension, extended_ids, match_items
from ..catalog.item_vectors import MAX_DIMENSIONS, item_vectors, joined, load_vectors, vectors_by_source
from ..catalog.semantic_ids import build_semantic_ids, given_ids
from ..catalog.text_encoder import title_vectors
from ..catalog.token_vectors import begin_at_vectors, place_among_known
from ..catalog.tokenizer import load_tokenizer
from ..config import Config
from ..data.dataset import Dataset, Split
from ..data.digest import Origin, digest_of, read_origin, require_same_data
from ..data.ragged import Ragged
from ..data.transitions import count_transitions
from ..model.attention.causal import require_model_takes
from ..model.policy import build_model, load_model
from ..rl.rewards import require_reward
from ..run.folder import RunFolder
from ..run.processes import Processes
from ..run.states import states
from ..serve.load import catalog_of_model, load_data
from .checkpoint import save_model

TEXTS_FILE = "text_vectors.npy"
"""In the folder of a run's catalogue: titles are encoded once."""


@dataclass(frozen=True)
class Job:
    """All that training needs, checked, before anything is written."""

    dataset: Dataset
    split: Split
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog
    model: nn.Module
    texts: np.ndarray | None = None
    """float32 [items, H], the titles by `catalog.text_encoder`."""
    extension: Extension | None = None
    """Where a new run goes on from another one's items with a newer log: which are known, new and gone."""


def prepare(config: Config, run: RunFolder | None) -> Job:
    """Load or make the data, the catalogue and the model; a resumed run takes its own catalogue."""
    require_reward(config.grpo.reward)
    goes_on = run is not None and run.catalog.exists()
    start = Catalog.load(run.catalog) if run is not None and goes_on else catalog_of_start(config)
    where = f"--data {config.data}" + ("" if goes_on else f" with --model {config.model}")
    extends = config.catalog.extend and not goes_on
    dataset, split = load_data(config, None if extends else start, where=where)
    extension = match_items(start, dataset.items.names, where) if extends and start is not None else None
    _require_training_data(split, config)
    texts = _title_vectors(dataset, config, run)
    if run is not None and start is not None and goes_on:
        _require_same_data(dataset, run, config)
        tokenizer, catalog = load_tokenizer(str(run.catalog)), start
    else:
        tokenizer, catalog = make_catalog(dataset, split, config, texts, start=start, extension=extension)
        weight = config.evaluation.counts_weight
        if weight or (weight is None and config.catalog.item_tokens == "item"):
            counted = count_transitions(Ragged.of(split.training), len(dataset.items))
            catalog = replace(catalog, transitions=counted)
    known = None
    if config.model:
        known = len(load_tokenizer(config.model))  # the model's own, before items were added
        model = load_model(config.model, tokens=len(tokenizer), known=known, seed=config.seed)
    else:
        model = build_model(config.policy, tokenizer, config.seed)
    require_model_takes(model, config.attention)
    if run is None or not states(run.checkpoints):  # else training goes on from a state's weights
        _initialize_tokens(model, catalog, dataset, split, config, known, texts)
    return Job(dataset, split, tokenizer, catalog, model, texts, extension)


def _title_vectors(dataset: Dataset, config: Config, run: RunFolder | None) -> np.ndarray | None:
    """What `catalog.text_encoder` makes of the titles; a resumed run keeps it with its catalogue."""
    if config.catalog.text_encoder is None:
        return None
    if run is not None and (run.catalog / TEXTS_FILE).exists():
        return load_vectors(run.catalog / TEXTS_FILE, len(dataset.items))
    return title_vectors(dataset, config.catalog.text_encoder)


def _initialize_tokens(
    model: nn.Module,
    catalog: Catalog,
    dataset: Dataset,
    split: Split,
    config: Config,
    known: int | None,
    texts: np.ndarray | None,
) -> None:
    """Where the config says so, have the new tokens of items begin at the items' vectors. known: the model's own."""
    if config.catalog.item_tokens != "item" or not config.catalog.initialize:
        return
    tokens = catalog.token_ids[:, 0].numpy()
    is_new = tokens >= (known or 0)
    if not is_new.any():  # a model of an earlier run, say, that has them all
        return
    size = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    parts = list(
        vectors_by_source(
            dataset,
            config.catalog,
            training_sequences=split.training,
            dimensions=min(size, MAX_DIMENSIONS),
            seed=config.seed,
            texts=texts,
        ).values()
    )
    if is_new.all():
        begin_at_vectors(model, catalog, joined(parts), known=known, seed=config.seed)
    else:
        place_among_known(model, catalog, parts, wanted=is_new, known=~is_new & _is_seen(split, catalog.num_items))


def place_unseen_items(job: Job, config: Config, folder: Path, processes: Processes) -> None:
    """Mend the rows of items that no training sequence has, one token each, in the model in `folder`.

    Training takes them for answers that are always wrong, and moves them where nobody is recommended them. New ones are
    brought to where their texts say, if there are vectors of these. With `catalog.extend` those that the model knew
    before get their rows back.
    """
    if config.catalog.item_tokens != "item":
        return
    tokens = job.catalog.token_ids[:, 0].cpu()
    unseen = ~_is_seen(job.split, job.catalog.num_items)
    before = unseen & (tokens < len(load_tokenizer(config.model))).numpy() if config.model else np.zeros_like(unseen)
    new, sources = unseen & ~before, [each for each in config.catalog.vector_sources if each != "cooccurrence"]
    has_texts = bool(new.any() and sources and config.catalog.initialize)
    if not (has_texts or (config.catalog.extend and before.any())):
        return
    model: Any = load_model(folder)
    if has_texts:
        only = replace(config.catalog, vectors_from=tuple(sources))
        parts = vectors_by_source(job.dataset, only, training_sequences=job.split.training, texts=job.texts)
        place_among_known(model, job.catalog, list(parts.values()), wanted=new, known=~unseen)
    if config.catalog.extend and before.any():
        kept, start = tokens[torch.from_numpy(before)], load_model(str(config.model))
        for part in ("get_input_embeddings", "get_output_embeddings"):
            with torch.no_grad():
                getattr(model, part)().weight[kept] = getattr(start, part)().weight[kept]
    save_model(model, job.tokenizer, folder, processes=processes)


def _is_seen(split: Split, items: int) -> np.ndarray:
    """bool [items]: whether some training sequence has it."""
    return np.bincount(Ragged.of(split.training).flat(), minlength=items) > 0


def _require_same_data(dataset: Dataset, run: RunFolder, config: Config) -> None:
    in_order = require_same_data(dataset, read_origin(run.catalog), f"--data {config.data}")
    if not in_order and run.writes:
        print(
            f"note: --data {config.data}: the same data with its users in another order: training goes on, not bit for "
            "bit as it would have",
            file=sys.stderr,
        )


def catalog_of_start(config: Config) -> Catalog | None:
    """The catalogue of the run that `config.model` comes from, where its tokens are to mean the same items again.

    None for a model that has none, where items are titles or tokens named by the log's own ids, which mean the same
    anywhere, and where the options ask for other semantic ids, which is said. With `catalog.extend` it is there in any
    case.

    Raises:
        ValueError: `catalog.extend` and no model of a run with tokens of the same kind.
    """
    if config.catalog.extend:
        return _catalog_to_extend(config)
    folder = catalog_of_model(config.model) if config.model and config.catalog.item_tokens == "semantic_id" else None
    catalog = None if folder is None else Catalog.load(folder)
    if folder is None or catalog is None or catalog.semantic_ids is None or catalog.source_ids is None:
        return None
    if (folder.parent / "config.yaml").exists():
        options = RunFolder(folder.parent).config.catalog
        same_text = replace(options, instruction=config.catalog.instruction)
        if same_text != config.catalog:
            print(
                f"note: --model {config.model}: its run had other options of catalog, so items get new ids, which its "
                "tokens do not mean yet",
                file=sys.stderr,
            )
            return None
    return catalog


def _catalog_to_extend(config: Config) -> Catalog:
    folder = catalog_of_model(config.model) if config.model else None
    if folder is None:
        raise ValueError(
            f"catalog.extend: expected --model of a run, RUN/checkpoints/grpo or an exported folder, got {config.model}"
        )
    start, kind = Catalog.load(folder), config.catalog.item_tokens
    if start.item_tokens != kind:
        raise ValueError(f"catalog.item_tokens: expected {start.item_tokens}, as the run extended has, got {kind}")
    return start


def _require_training_data(split: Split, config: Config) -> None:
    """Refuse a split that leaves a stage nothing to train on, before anything is written."""
    if config.sft.epochs > 0 and not split.sft:
        raise ValueError(
            f"split.rl_share: expected a share that leaves SFT a user with two items, got {config.split.rl_share}: "
            "lower it or split.rl_targets, raise split.rl_seen, or set sft.epochs to 0"
        )
    if config.grpo.steps != 0 and len(split.rl) == 0:
        raise ValueError(
            f"split.rl_share: expected a share that keeps a user's interaction for RL, got {config.split.rl_share} "
            "(a user needs four items): raise it, or set grpo.steps to 0"
        )


def make_catalog(
    dataset: Dataset,
    split: Split,
    config: Config,
    texts: np.ndarray | None = None,
    *,
    start: Catalog | None = None,
    extension: Extension | None = None,
) -> tuple[PreTrainedTokenizerBase, Catalog]:
    """Items as tokens of the model's tokenizer, or of a small one made for them.

    texts: as in `item_vectors`.
    start: of the run that the model comes from: items keep its semantic ids.
    extension: which items of the dataset it has; None: all, in the same order.
    """
    kind = config.catalog.item_tokens
    is_used = {
        "item": config.catalog.initialize,
        "semantic_id": given_ids(dataset, config.catalog) is None,
        "title": False,
    }
    for name in ("vectors", "text_encoder"):
        value = getattr(config.catalog, name)
        if value is not None and not is_used[kind]:
            raise ValueError(
                f"catalog.{name}: expected None where nothing is made of it (items are titles, or the data has "
                "semantic ids and there is no catalog.rebuild_ids, or items are tokens and there is no "
                f"catalog.initialize), got {value!r}"
            )
    semantic_ids = None
    if start is not None and kind == "semantic_id":
        extension = extension or Extension(np.arange(start.num_items), gone=0)
        semantic_ids = _ids_of_start(dataset, split, start, extension, config, texts)
    elif kind == "semantic_id":
        semantic_ids = build_semantic_ids(
            dataset, config.catalog, training_sequences=split.training, seed=config.seed, texts=texts
        )
    tokenizer = load_tokenizer(config.model) if config.model else make_tokenizer(dataset, config.catalog, semantic_ids)
    catalog = build_catalog(
        dataset,
        tokenizer,
        config.catalog,
        training_sequences=split.training,
        seed=config.seed,
        semantic_ids=semantic_ids,
        prompt=config.prompt,
    )
    return tokenizer, catalog


def _ids_of_start(
    dataset: Dataset, split: Split, start: Catalog, extension: Extension, config: Config, texts: np.ndarray | None
) -> list[tuple[int, ...]]:
    assert start.semantic_ids is not None
    given = given_ids(dataset, config.catalog)
    known = [(row, place) for row, place in enumerate(extension.places) if place >= 0]
    changed = [row for row, place in known if given and start.semantic_ids[place][: len(given[row])] != given[row]]
    if changed:
        names = ", ".join(dataset.items.names[row] for row in changed[:5])
        raise ValueError(
            f"--data {config.data}: expected the semantic ids that --model {config.model} was trained with, got others "
            f"of {len(changed):,} items ({names}{', ...' if len(changed) > 5 else ''})"
        )
    vectors = None
    if given is None and extension.is_new.any():
        vectors = item_vectors(
            dataset, config.catalog, training_sequences=split.training, seed=config.seed, texts=texts
        )
    return extended_ids(
        start.semantic_ids, extension, vectors=vectors, given=given, separate=config.catalog.separate_shared_ids
    )


def save_catalog(job: Job, config: Config, folder: Path) -> None:
    job.catalog.save(folder)
    job.tokenizer.save_pretrained(folder)
    if job.texts is not None:
        np.save(folder / TEXTS_FILE, job.texts)
    data = None if config.data is None else str(Path(config.data).absolute())
    Origin(data, digest_of(job.dataset)).save(folder)


def summary(job: Job) -> str:
    """A line on the terminal."""
    dataset, trie = job.dataset, job.catalog.trie
    parameters = sum(p.numel() for p in job.model.parameters())
    return (
        f"{dataset.name}: {len(dataset.sequences):,} users ({dataset.users_left_out:,} with fewer than three items "
        f"left out), {job.catalog.num_items:,} items, {trie.num_nodes:,} trie nodes, depth {trie.max_depth}; "
        f"model: {parameters:,} parameters"
    )


def describe(job: Job) -> dict[str, Any]:
    """What results.json says of the data."""
    test = job.split.test
    histories = Ragged.of(test.histories)
    user = np.repeat(np.arange(len(test)), histories.lengths)
    repeats = np.bincount(user[histories.flat() == test.targets[user]], minlength=len(test)) > 0
    return {
        "name": job.dataset.name,
        "users": len(job.dataset.sequences),
        "users_left_out": job.dataset.users_left_out,
        "items": job.catalog.num_items,
        "interactions": int(Ragged.of(job.dataset.sequences).lengths.sum()),
        "repeat_share": round(float(np.mean(repeats)), 4) if len(test) else None,
    }
