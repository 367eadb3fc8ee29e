"""Titles and codes to tokens: tokenizers made from a catalogue alone, and how any tokenizer spells items and prompts.

The small tokenizers, one token an item or a code of semantic ids, or byte-level BPE trained on the titles, begin with
the special tokens <pad>, <bos>, <eos> (0, 1, 2) and save and load with save_pretrained and AutoTokenizer. They are of
Qwen2's class because the small default model is one: beside its config AutoTokenizer reads any tokenizer as a
Qwen2Tokenizer. A --model brings its own tokenizer instead. This module sees titles and codes, never items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from ..pretrained import source_of

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


def item_token_names(source_ids: Iterable[str]) -> list[str]:
    """The names of items' tokens where each item is one: <item_55> for the one that the log calls 55."""
    return [f"<item_{source_id}>" for source_id in source_ids]


def make_semantic_tokenizer(token_names: Sequence[str]) -> Qwen2Tokenizer:
    """A tokenizer whose vocabulary is the special tokens and `token_names`, in this order; it reads no other text."""
    vocabulary = {name: token for token, name in enumerate(SPECIAL_TOKENS)}
    tokenizer = _wrap(vocabulary, [])
    if len(set(token_names) | set(SPECIAL_TOKENS)) != len(SPECIAL_TOKENS) + len(token_names):
        raise ValueError("token_names: expected distinct names other than <pad>, <bos>, <eos>, got repeated ones")
    tokenizer.add_tokens(list(token_names))
    return tokenizer


def train_title_tokenizer(titles: Iterable[str], vocabulary_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of at most `vocabulary_size` tokens trained on `titles`; it reads any text.

    Raises:
        ValueError: vocabulary_size below 259, the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocabulary_size < smallest:
        raise ValueError(f"vocabulary_size: expected at least {smallest}, got {vocabulary_size}")
    qwen = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    # A title stands behind a space in the catalogue's text, so that is how it is seen here.
    tokenizer.train_from_iterator((" " + title for title in titles), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return _wrap(trained["vocab"], [tuple(merge) for merge in trained["merges"]])


def semantic_tokens(semantic_ids: Sequence[Sequence[int]], tokenizer: Any) -> list[list[int]]:
    """The tokens of semantic ids, one a code; codes that the tokenizer lacks are added to it as ordinary tokens."""
    names = semantic_token_names(semantic_ids)
    tokenizer.add_tokens(names)  # leaves alone what it has already
    token_of = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    return [
        [token_of[semantic_token_name(level, code)] for level, code in enumerate(semantic_id)]
        for semantic_id in semantic_ids
    ]


def item_tokens(source_ids: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """One token an item; those that the tokenizer lacks are added to it as ordinary tokens."""
    names = item_token_names(source_ids)
    tokenizer.add_tokens(names)
    return [[token] for token in tokenizer.convert_tokens_to_ids(names)]


def title_tokens(titles: Sequence[str], tokenizer: Any, *, lead: str = " ", ends: bool = True) -> list[list[int]]:
    """The tokens of `lead` + title, and where `ends` of the end token, for every title.

    Text that spells a special token is read as text.

    Raises:
        ValueError: the tokenizer has no end token, reads single words only, or turns a title into nothing or into
            tokens with the end token among them.
    """
    end_token = tokenizer.eos_token_id
    if end_token is None:
        raise ValueError(
            f"tokenizer: {name_of(tokenizer)}: item_tokens 'title' needs an eos token to end each title with, got "
            "none; set tokenizer.eos_token or use item_tokens 'semantic_id'"
        )
    require_reads_text(tokenizer, "item_tokens 'title'")
    # Were special tokens read as such, a title "<eos>" would end the item in its middle.
    encoded = tokens_within([lead + title for title in titles], tokenizer)
    for title, tokens in zip(titles, encoded, strict=True):
        if not tokens or end_token in tokens:
            raise ValueError(
                f"tokenizer: {name_of(tokenizer)}: expected some tokens and no end token, {end_token}, for the title "
                f"{title!r}, got {tokens}"
            )
    return [[*tokens, end_token] for tokens in encoded] if ends else encoded


def tokens_within(texts: Sequence[str], tokenizer: Any, *, special: bool = False) -> list[list[int]]:
    """The tokens of texts that stand behind other text; special: tokens that they spell are read as special ones.

    Some tokenizers (Llama 2's, say) begin every text with a space of their own, which does not belong here: with them
    a text is read behind a letter whose tokens stay what they are.
    """

    def encode(batch: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(batch), add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    line, letter, both = encode(["\n", "a", "\na"])
    if both == line + letter:
        return encode(texts)
    found = encode(texts)
    for before in ("a", ".", "\n"):  # the last one that does is taken
        alone, *behind = encode([before, *(before + text for text in texts)])
        for index, tokens in enumerate(behind):
            if tokens[: len(alone)] == alone:
                found[index] = tokens[len(alone) :]
    return found


def prefix_tokens(tokenizer: Any, instruction: str = "") -> tuple[int, ...]:
    """What every prompt begins with: the bos token where there is one, the instruction, and if neither, the eos token.

    Special tokens that the instruction spells are read as such, so that a chat model's markers can be written in it.

    Raises:
        ValueError: an instruction for a tokenizer that reads single words only, or nothing to begin with.
    """
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if instruction:
        require_reads_text(tokenizer, "an instruction")
        prefix += tokenizer(instruction, add_special_tokens=False)["input_ids"]
    if not prefix and tokenizer.eos_token_id is not None:
        prefix = [tokenizer.eos_token_id]
    if not prefix:
        raise ValueError(
            f"tokenizer: {name_of(tokenizer)}: expected a bos or eos token, or an instruction, to begin every prompt "
            "with"
        )
    return tuple(prefix)


def require_reads_text(tokenizer: Any, purpose: str) -> None:
    """Refuse, for `purpose`, a tokenizer that knows its own tokens only."""
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ValueError(
            f"tokenizer: {purpose} needs one that reads any text, got {name_of(tokenizer)}, which knows its own tokens "
            "only, as the one made for semantic ids does; give a model with a tokenizer of its own, or use title mode"
        )


def name_of(tokenizer: Any) -> str:
    """What a message calls the tokenizer: the folder or hub name that it came from."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _wrap(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2Tokenizer:
    pad, bos, eos = SPECIAL_TOKENS
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=pad,  # never used, byte-level BPE knows no unknown text; but left out it would be one token more
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        padding_side="left",
    )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A tokenizer as transformers loads it; code that a folder brings is never run."""
    return AutoTokenizer.from_pretrained(**source_of(name_or_path), trust_remote_code=False)
