"""Titles and codes to tokens: tokenizers made from a catalogue alone, and how any tokenizer spells items and prompts.

The two small tokenizers, one token a code of semantic ids or byte-level BPE trained on the titles, begin with the
special tokens <pad>, <bos>, <eos> (0, 1, 2) and are ordinary transformers tokenizers: they save and load with
save_pretrained and from_pretrained. A --model brings its own tokenizer instead. This module sees titles and codes,
never items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
MAX_LEVELS = 26  # a letter a level


def semantic_token_name(level: int, code: int) -> str:
    """The name of a code's token: <a_12> for code 12 of level 0, <b_7> for code 7 of level 1."""
    return f"<{chr(ord('a') + level)}_{code}>"


def semantic_token_names(semantic_ids: Iterable[Sequence[int]]) -> list[str]:
    """The token names of all the codes that occur, by level, then code.

    Raises:
        ValueError: more than 26 levels, the letters there are (25 where shared ids are told apart by one more).
    """
    used = {(level, code) for semantic_id in semantic_ids for level, code in enumerate(semantic_id)}
    levels = 1 + max((level for level, _ in used), default=-1)
    if levels > MAX_LEVELS:
        raise ValueError(f"semantic_ids: expected at most {MAX_LEVELS} levels, shared ids told apart, got {levels}")
    return [semantic_token_name(level, code) for level, code in sorted(used)]


def make_semantic_tokenizer(token_names: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is the special tokens and `token_names`, in this order; it reads no other text."""
    vocabulary = {name: token for token, name in enumerate((*SPECIAL_TOKENS, *token_names))}
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(token_names):
        raise ValueError("token_names: expected distinct names other than <pad>, <bos>, <eos>, got repeated ones")
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("<[^<>]*>"), behavior="isolated")]
    )
    return _wrap(tokenizer)


def train_title_tokenizer(titles: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary_size` tokens trained on `titles`; it reads any text.

    Raises:
        ValueError: vocabulary_size below 259, the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocabulary_size < smallest:
        raise ValueError(f"vocabulary_size: expected at least {smallest}, got {vocabulary_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    # A title stands behind a space in the catalogue's text, so that is how it is seen here.
    tokenizer.train_from_iterator((" " + title for title in titles), trainer)
    return _wrap(tokenizer)


def semantic_tokens(semantic_ids: Sequence[Sequence[int]], tokenizer: Any) -> list[list[int]]:
    """The tokens of semantic ids, one a code; codes that the tokenizer lacks are added to it as ordinary tokens."""
    names = semantic_token_names(semantic_ids)
    tokenizer.add_tokens(names)  # leaves alone what it has already
    token_of = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    return [
        [token_of[semantic_token_name(level, code)] for level, code in enumerate(semantic_id)]
        for semantic_id in semantic_ids
    ]


def title_tokens(titles: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of " " + title and the end token, for every title; text that spells a special token is read as text.

    Raises:
        ValueError: the tokenizer has no end token, reads single words only, or turns a title into nothing or into
            tokens with the end token among them.
    """
    end_token = tokenizer.eos_token_id
    if end_token is None:
        raise ValueError(
            f"tokenizer: {_name(tokenizer)}: item_tokens 'title' needs an eos token to end each title with, got none; "
            "set tokenizer.eos_token or use item_tokens 'semantic_id'"
        )
    _require_reads_text(tokenizer, "item_tokens 'title'")
    texts = [" " + title for title in titles]
    # Without split_special_tokens a title "<eos>" would end the item in its middle.
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for title, tokens in zip(titles, encoded, strict=True):
        if not tokens or end_token in tokens:
            raise ValueError(
                f"tokenizer: {_name(tokenizer)}: expected some tokens and no end token, {end_token}, for the title "
                f"{title!r}, got {tokens}"
            )
    return [[*tokens, end_token] for tokens in encoded]


def prefix_tokens(tokenizer: Any, instruction: str = "") -> tuple[int, ...]:
    """What every prompt begins with: the bos token where there is one, the instruction, and if neither, the eos token.

    Special tokens that the instruction spells are read as such, so that a chat model's markers can be written in it.

    Raises:
        ValueError: an instruction for a tokenizer that reads single words only, or nothing to begin with.
    """
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if instruction:
        _require_reads_text(tokenizer, "an instruction")
        prefix += tokenizer(instruction, add_special_tokens=False)["input_ids"]
    if not prefix and tokenizer.eos_token_id is not None:
        prefix = [tokenizer.eos_token_id]
    if not prefix:
        raise ValueError(
            f"tokenizer: {_name(tokenizer)}: expected a bos or eos token, or an instruction, to begin every prompt with"
        )
    return tuple(prefix)


def _require_reads_text(tokenizer: Any, purpose: str) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(getattr(backend, "model", None), models.WordLevel):
        raise ValueError(
            f"tokenizer: {purpose} needs one that reads any text, got {_name(tokenizer)}, which knows single words "
            "only, as the one made for semantic ids does; give a model with a tokenizer of its own, or use title mode"
        )


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, padding_side="left"
    )
