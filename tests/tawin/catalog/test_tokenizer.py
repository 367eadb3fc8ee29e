"""Tokenizers made from a catalogue, and how any tokenizer spells items and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

from tawin.catalog.tokenizer import (
    make_semantic_tokenizer,
    prefix_tokens,
    semantic_token_names,
    semantic_tokens,
    title_tokens,
    train_title_tokenizer,
)

TITLES = ["red oak lamp", "blue oak lamp", 'say "hello", world', "crème brûlée ✓", "red oak lamp"]


def title_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """A tokenizer trained on TITLES, with special tokens changed."""
    tokenizer = train_title_tokenizer(TITLES, 300)
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_token_names_are_sorted_by_level_then_code() -> None:
    names = semantic_token_names([(12, 7), (3, 7, 0), (3, 100)])
    assert names == ["<a_3>", "<a_12>", "<b_7>", "<b_100>", "<c_0>"]
    assert semantic_token_names([]) == []


def test_there_are_26_letters_for_levels() -> None:
    assert semantic_token_names([(0,) * 26])[-1] == "<z_0>"
    with pytest.raises(ValueError, match=r"semantic_ids: expected at most 26 levels, .*got 27"):
        semantic_token_names([(0,) * 27])


def test_a_semantic_tokenizer_has_the_specials_first_and_the_names_in_order() -> None:
    tokenizer = make_semantic_tokenizer(["<a_3>", "<b_7>"])
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<a_3>", "<b_7>"]) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 2, 5)
    assert tokenizer("<b_7><a_3> <a_3>")["input_ids"] == [4, 3, 3]
    assert tokenizer.decode([3, 4]) == "<a_3><b_7>"


def test_repeated_or_special_token_names_are_refused() -> None:
    for names in (["<a_1>", "<a_1>"], ["<eos>"]):
        with pytest.raises(ValueError, match=r"token_names: expected distinct names"):
            make_semantic_tokenizer(names)


@pytest.mark.parametrize("kind", ["semantic", "title"])
def test_a_made_tokenizer_loads_as_it_was_saved(tmp_path: Path, kind: str) -> None:
    if kind == "semantic":
        before, text = make_semantic_tokenizer(["<a_3>", "<b_7>"]), "<a_3><b_7><eos>"
    else:
        before, text = title_tokenizer(), " crème <eos> lamp"
    before.save_pretrained(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert (after.pad_token_id, after.bos_token_id, after.eos_token_id) == (0, 1, 2)
    assert after.padding_side == "left" and len(after) == len(before)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_title_tokenizer_reads_any_text_and_gives_it_back(text: str) -> None:
    tokenizer = title_tokenizer()
    (tokens,) = title_tokens([text], tokenizer)
    assert tokens[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in tokens[:-1]
    assert tokenizer.decode(tokens[:-1]) == " " + text


def test_training_on_titles_shortens_them_and_is_the_same_each_time() -> None:
    trained, again = title_tokenizer(), title_tokenizer()
    assert trained.get_vocab() == again.get_vocab()
    assert len(trained) <= 300
    assert len(trained(" red oak lamp")["input_ids"]) < len(" red oak lamp") / 2


def test_a_title_is_trained_on_as_it_stands_in_a_prompt_behind_a_space() -> None:
    tokenizer = train_title_tokenizer(["lamp"] * 20, 300)
    assert [len(tokens) for tokens in title_tokens(["lamp"], tokenizer)] == [2]  # " lamp" and the end token


def test_a_vocabulary_needs_room_for_all_bytes() -> None:
    assert len(train_title_tokenizer([], 259)) == 259
    with pytest.raises(ValueError, match=r"vocabulary_size: expected at least 259, got 258"):
        train_title_tokenizer(TITLES, 258)


@pytest.mark.parametrize("title", ["<eos>", "a <eos> b", "<bos>", "<pad>"])
def test_a_title_that_spells_a_special_token_is_read_as_text(title: str) -> None:
    # Trained on such titles too: no merge may lead to the special token either.
    for tokenizer in (title_tokenizer(), train_title_tokenizer([title] * 50, 400)):
        (tokens,) = title_tokens([title], tokenizer)
        assert not set(tokens[:-1]) & {0, 1, 2}
        assert tokenizer.decode(tokens[:-1]) == " " + title
        # The tokenizer itself is left as it was.
        assert tokenizer("<eos>", add_special_tokens=False)["input_ids"] == [2]


def test_titles_need_an_end_token_and_the_tokenizer_without_one_is_named() -> None:
    tokenizer = title_tokenizer(eos_token=None, name_or_path="some/model")
    with pytest.raises(ValueError, match=r"tokenizer: some/model: item_tokens 'title' needs an eos token"):
        title_tokens(TITLES, tokenizer)


def test_a_title_without_tokens_is_refused() -> None:
    reads_a = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), eos_token="<eos>")
    with pytest.raises(ValueError, match=r"expected some tokens and no end token, 1, for the title 'lmp', got \[\]"):
        title_tokens(["lmp"], reads_a)


def test_titles_and_instructions_are_refused_by_a_tokenizer_that_reads_no_text() -> None:
    tokenizer = make_semantic_tokenizer(["<a_3>"])
    with pytest.raises(
        ValueError, match=r"item_tokens 'title' needs one that reads any text, got .*its own tokens only"
    ):
        title_tokens(TITLES, tokenizer)
    with pytest.raises(ValueError, match=r"an instruction needs one that reads any text, got .*its own tokens only"):
        prefix_tokens(tokenizer, "Recommend")


def test_codes_that_a_tokenizer_lacks_are_added_once_as_ordinary_tokens() -> None:
    tokenizer = title_tokenizer()
    size = len(tokenizer)
    tokens = semantic_tokens([(1, 2), (1, 0, 0)], tokenizer)
    assert len(tokenizer) == size + 4
    assert tokens == [[size, size + 2], [size, size + 1, size + 3]]  # <a_1> <b_0> <b_2> <c_0>
    assert semantic_tokens([(1, 2), (1, 0, 0)], tokenizer) == tokens and len(tokenizer) == size + 4
    assert not any(tokenizer.added_tokens_decoder[token].special for token in tokens[0])


def test_semantic_tokens_of_a_made_tokenizer_are_its_own() -> None:
    ids = [(1, 2), (0, 2)]
    tokenizer = make_semantic_tokenizer(semantic_token_names(ids))
    assert semantic_tokens(ids, tokenizer) == [[4, 5], [3, 5]]
    assert len(tokenizer) == 6


def test_a_prompt_begins_with_bos_then_the_instruction_else_with_eos() -> None:
    with_bos, without = title_tokenizer(), title_tokenizer(bos_token=None)
    instruction = tuple(with_bos("Next lamp:", add_special_tokens=False)["input_ids"])
    assert prefix_tokens(with_bos) == (1,)
    assert prefix_tokens(with_bos, "Next lamp:") == (1, *instruction)
    assert prefix_tokens(without, "Next lamp:") == instruction
    assert prefix_tokens(without) == (2,)
    assert prefix_tokens(without, "<eos>lamp")[0] == 2  # an instruction may spell special tokens


def test_a_prompt_needs_something_to_begin_with() -> None:
    with pytest.raises(ValueError, match=r"expected a bos or eos token, or an instruction"):
        prefix_tokens(title_tokenizer(bos_token=None, eos_token=None))


@pytest.mark.parametrize("titles", [None, TITLES])
def test_a_tokenizer_beside_a_qwen2_config_loads_as_it_was_saved(titles: list[str] | None, tmp_path: Path) -> None:
    made = train_title_tokenizer(titles, 300) if titles else make_semantic_tokenizer(["<a_3>", "<b_7>"])
    made.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=len(made)).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == made.get_vocab() and len(loaded) == len(made)
    texts = [" " + title for title in TITLES] if titles else ["<b_7><a_3>"]
    assert loaded(texts)["input_ids"] == made(texts)["input_ids"]
