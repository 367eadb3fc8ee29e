"""Item vectors from titles, by any Hugging Face encoder. Called by `item_vectors`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from ..data.dataset import DataError, Dataset
from .tokenizer import load_tokenizer

BATCH = 64  # titles of a forward
LONGEST = 512  # tokens of a title that are read, or fewer where the encoder knows no more positions


@torch.no_grad()
def title_vectors(dataset: Dataset, encoder: str) -> np.ndarray:
    """What an encoder makes of the titles: the mean of its last states over a title's tokens, at unit length.

    encoder: a folder or hub name; code that it brings is never run. It runs on the GPU where there is one.

    Returns float32 [items, H]; zeros for an item without a title.

    Raises:
        DataError: data without titles.
        ValueError: no such encoder.
    """
    if dataset.items.titles is None:
        raise DataError(f"{dataset.name}: column 'title': catalog.text_encoder needs titles, the data has none")
    titles = [(title or "").strip() for title in dataset.items.titles]
    tokenizer, model = _load(encoder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    tokenizer.padding_side = "right"  # else padding would shift the positions of an encoder that counts them itself
    longest = min(LONGEST, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST))
    found = np.zeros((len(titles), model.config.hidden_size), dtype=np.float32)
    # Titles of like length share a batch, so little is padded.
    rows = np.array([row for row in np.argsort([len(title) for title in titles], kind="stable") if titles[row]])
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        batch = tokenizer(
            [titles[row] for row in chosen], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        states = model(**batch).last_hidden_state.float()  # [B, S, H]
        mask = batch["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        found[chosen] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
    return found


def _load(encoder: str) -> tuple[Any, Any]:
    try:
        tokenizer: Any = load_tokenizer(encoder)
        model: Any = AutoModel.from_pretrained(encoder, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"catalog.text_encoder: expected a Hugging Face encoder, got {encoder!r}: {error}") from error
    if tokenizer.pad_token is None:  # a decoder's, which is never padded in its own use
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.get_encoder() if model.config.is_encoder_decoder else model
