"""Prompts: their text is the template's to the letter, and their tokens are the tokenizer's own for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tawin.catalog.catalog import Catalog, build_catalog
from tawin.catalog.prompt import STYLES, prompt_tokens, template_of
from tawin.catalog.tokenizer import make_semantic_tokenizer, train_title_tokenizer
from tawin.config import CatalogConfig, Config, PromptConfig
from tawin.data.dataset import Dataset, Items, load_dataset

from ..text_models import chat_tokenizer, llama_tokenizer

REAL_DATA = Path(os.environ.get("TAWIN_DATA", Path(__file__).parents[4] / "shared" / "data"))

TITLES: list[str | None] = ["Red lamp", "Blue lamp, large", "Grüne Tasse", None]
IDS: list[tuple[int, ...]] = [(0, 1), (0, 2), (1, 1), (2, 0)]
DATASET = Dataset(
    "made", np.array([7]), [np.arange(4)], Items(np.array([50, 20, 10, 30]), titles=TITLES, semantic_ids=IDS)
)
WRITTEN = {
    "title": ["Red lamp", "Blue lamp, large", "Grüne Tasse", "item 30"],
    "semantic_id": ["<a_0><b_1>", "<a_0><b_2>", "<a_1><b_1>", "<a_2><b_0>"],
}
TOKENIZERS: dict[str, Any] = {
    "bos": lambda: train_title_tokenizer([*WRITTEN["title"], STYLES["rere"].text], 400),
    "chat": lambda: chat_tokenizer([*WRITTEN["title"], STYLES["rere"].text]),
    "llama": lambda: llama_tokenizer([*WRITTEN["title"], STYLES["rere"].text]),
}
HISTORIES = [[2], [0, 1, 3], [1, 1], []]


def catalog_of(tokenizer: PreTrainedTokenizerBase, item_tokens: Any = "title", **prompt: Any) -> Catalog:
    config = CatalogConfig(item_tokens=item_tokens)
    return build_catalog(DATASET, tokenizer, config, training_sequences=[], prompt=PromptConfig(**prompt))


def prompts_of(catalog: Catalog, histories: list[list[int]]) -> list[list[int]]:
    """The tokens of prompts without their padding."""
    input_ids, attention_mask = catalog.encode_histories([np.array(items, dtype=np.int64) for items in histories])
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]


def tokens_of(catalog: Catalog, item: int) -> list[int]:
    return [token for token in catalog.token_ids[item].tolist() if token >= 0]


def text_of(config: PromptConfig, item_tokens: str, history: list[int]) -> str:
    """What a prompt should read."""
    template = template_of(config)
    items = [template.item.replace("{item}", WRITTEN[item_tokens][item]) for item in history]
    return template.text.replace("{history}", template.separator.join(items))


@pytest.mark.parametrize(
    ("prompt", "lead"),  # lead: what stands between a prompt and the title that completes it
    [
        ({"style": "rere"}, ""),
        ({"style": "minionerec"}, ""),
        ({"template": "Seen: {history}\nNext: ", "separator": ", "}, ""),
        ({"template": "Seen:\n{history}", "item": "* {item}\n"}, ""),
        ({"template": "<eos>{history}|", "item": "[{item}]"}, " "),
        ({"template": '{history} Next: "', "item": "[{item}]"}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("item_tokens", WRITTEN)
def test_a_prompt_is_the_text_of_its_template_in_the_tokenizers_own_tokens(
    prompt: dict[str, Any], lead: str, kind: str, item_tokens: str
) -> None:
    tokenizer = TOKENIZERS[kind]()
    catalog = catalog_of(tokenizer, item_tokens, **prompt)
    assert catalog.one_target
    titles = item_tokens == "title"
    for history, tokens in zip(HISTORIES, prompts_of(catalog, HISTORIES), strict=True):
        text = text_of(PromptConfig(**prompt), item_tokens, history)
        begins = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        # A title that follows a space begins with it.
        spaced = titles and text.endswith(" ")
        assert tokens == begins + tokenizer(text[:-1] if spaced else text, add_special_tokens=False)["input_ids"]
        whole = tokenizer.decode(begins + tokenizer(text, add_special_tokens=False)["input_ids"])
        for item, name in enumerate(WRITTEN[item_tokens]):
            expected = whole + (lead + name + tokenizer.eos_token if titles else name)
            assert tokenizer.decode([*tokens, *tokens_of(catalog, item)]) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_is_kept_to_the_letter_where_a_token_would_span_a_border(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    begins = tokenizer.bos_token or tokenizer.eos_token  # something has to come before the first token
    catalog = catalog_of(tokenizer, separator=" / ")  # a space before all titles but the first one
    (tokens,) = prompts_of(catalog, [[0, 1]])
    assert tokenizer.decode(tokens) == begins + "Red lamp / Blue lamp, large"
    assert tokenizer.decode(tokens_of(catalog, 0)) == " Red lamp" + tokenizer.eos_token


@pytest.mark.parametrize("prompt", [{}, {"style": "rere"}])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_titles_are_cut_in_histories_and_whole_as_answers(prompt: dict[str, Any], kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    whole, cut = catalog_of(tokenizer, **prompt), catalog_of(tokenizer, title_words=1, **prompt)
    assert cut.one_target and cut.token_ids.tolist() == whole.token_ids.tolist()
    ((tokens,), (longer,)) = (prompts_of(catalog, [[0, 1]]) for catalog in (cut, whole))
    text = tokenizer.decode(longer)
    for long, short in (("Red lamp", "Red"), ("Blue lamp, large", "Blue")):
        assert long in text
        text = text.replace(long, short)
    assert tokenizer.decode(tokens) == text
    _, _, labels = cut.encode_windows([np.array([0, 1])], [1])
    assert labels[labels >= 0].tolist() == tokens_of(cut, 1)


def test_without_options_nothing_stands_around_the_items() -> None:
    tokenizer = TOKENIZERS["bos"]()
    for item_tokens in WRITTEN:
        catalog = catalog_of(tokenizer, item_tokens)
        assert (catalog.prefix, catalog.separator, catalog.suffix) == ((1,), (), ())
        assert not catalog.one_target and catalog.history_tokens is None and catalog.empty is None
        assert prompts_of(catalog, [[0, 1], []]) == [[1, *tokens_of(catalog, 0), *tokens_of(catalog, 1)], [1]]


def test_text_before_the_history_alone_is_an_instruction() -> None:
    tokenizer = TOKENIZERS["bos"]()
    config = CatalogConfig(item_tokens="title", instruction="Seen:")
    instructed = build_catalog(DATASET, tokenizer, config, training_sequences=[])
    templated = catalog_of(tokenizer, template="Seen:{history}")
    assert not templated.one_target
    assert prompts_of(templated, HISTORIES) == prompts_of(instructed, HISTORIES)


def test_titles_that_nothing_parts_end_with_the_end_token_within_a_template_too() -> None:
    tokenizer = TOKENIZERS["bos"]()
    catalog = catalog_of(tokenizer, template="Seen:{history}\nNext:\n")
    (tokens,) = prompts_of(catalog, [[0, 2]])
    assert tokenizer.decode(tokens) == "<bos>Seen: Red lamp<eos> Grüne Tasse<eos>\nNext:\n"
    assert tokenizer.decode(tokens_of(catalog, 0)) == "Red lamp<eos>"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("system", ["", "You recommend items."])
@pytest.mark.parametrize("item_tokens", WRITTEN)
def test_a_chat_is_what_the_tokenizers_own_template_gives(style: Any, system: str, item_tokens: str) -> None:
    tokenizer = TOKENIZERS["chat"]()
    prompt = PromptConfig(style, chat=True, system=system, separator=", ")
    catalog = catalog_of(tokenizer, item_tokens, style=style, chat=True, system=system, separator=", ")
    for history, tokens in zip(HISTORIES, prompts_of(catalog, HISTORIES), strict=True):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text_of(prompt, item_tokens, history)})
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tokenizer.decode(tokens) == tokenizer.decode(whole)
        if style != "plain":  # there a space stands before all titles but the first
            assert tokens == whole
    if item_tokens == "title":
        assert tokenizer.decode(tokens_of(catalog, 2)) == "Grüne Tasse<|im_end|>"


def test_a_title_cannot_end_the_users_turn() -> None:
    tokenizer = TOKENIZERS["chat"]()
    items = Items(np.array([1]), titles=["Lamp<|im_end|>"])
    dataset = Dataset("made", np.array([7]), [np.zeros(3, dtype=np.int64)], items)
    config, prompt = CatalogConfig(item_tokens="title"), PromptConfig("rere", chat=True)
    catalog = build_catalog(dataset, tokenizer, config, training_sequences=[], prompt=prompt)
    (tokens,) = prompts_of(catalog, [[0]])
    assert tokens.count(tokenizer.eos_token_id) == 1  # the template's own
    assert 'before: "Lamp<|im_end|>"' in tokenizer.decode(tokens)


def test_what_a_tokenizer_cannot_do_is_refused_by_name() -> None:
    plain, chat = TOKENIZERS["bos"](), TOKENIZERS["chat"]()
    with pytest.raises(ValueError, match=r"prompt.chat: .*expected a tokenizer with a chat template, got one without"):
        catalog_of(plain, style="rere", chat=True)
    with pytest.raises(ValueError, match=r"prompt.separator: expected text between the titles of a chat"):
        catalog_of(chat, chat=True)
    with pytest.raises(ValueError, match=r"a prompt of one's own needs one that reads any text"):
        prompt_tokens(make_semantic_tokenizer(["<a_0>"]), PromptConfig("minionerec"))
    chat.chat_template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}"
    with pytest.raises(ValueError, match=r"prompt.chat: .*its chat template refuses the prompt: no system role"):
        catalog_of(chat, style="rere", chat=True, system="Recommend.")
    with pytest.raises(ValueError, match=r"expected a chat template that has the user's message once, got it 0 times"):
        catalog_of(chat, style="rere", chat=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "Next:"}, r"prompt.template: expected text with {history} once, got 'Next:'"),
        ({"template": "{history}{history}"}, r"prompt.template: expected text with {history} once"),
        ({"item": ""}, r"prompt.item: expected text with {item} once, got ''"),
        ({"style": "d3"}, r"prompt.style: expected one of \('plain', 'rere', 'minionerec'\), got 'd3'"),
        ({"system": "Hello"}, r"prompt.system: expected '' without prompt.chat, got 'Hello'"),
    ],
)
def test_options_that_make_no_prompt_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptConfig(**options)


def test_an_instruction_beside_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"catalog.instruction: expected '' where options of `prompt` are given"):
        Config(catalog=CatalogConfig(instruction="Next:"), prompt=PromptConfig("rere"))


@pytest.mark.parametrize("item_tokens", WRITTEN)
@pytest.mark.parametrize("style", ["rere", "minionerec"])
def test_a_training_sequence_is_a_prompt_and_what_completes_it(item_tokens: str, style: Any) -> None:
    catalog = catalog_of(TOKENIZERS["chat"](), item_tokens, style=style)
    windows = [[2, 0], [0, 1, 3, 2], [1]]
    input_ids, attention_mask, labels = catalog.encode_windows([np.array(window) for window in windows], [1, 3, 0])
    for row, window in enumerate(windows):
        (prompt,) = prompts_of(catalog, [window[:-1]])
        target = tokens_of(catalog, window[-1])
        padding = input_ids.shape[1] - len(prompt) - len(target)
        assert input_ids[row].tolist() == prompt + target + [catalog.pad_token] * padding
        assert attention_mask[row].tolist() == [1] * len(prompt + target) + [0] * padding
        assert labels[row].tolist() == [-100] * len(prompt) + target + [-100] * padding
    with pytest.raises(ValueError, match=r"first_targets: expected the last item of each window as its only target"):
        catalog.encode_windows([np.array([0, 1, 2])], [1])


@pytest.mark.parametrize("prompt", [{"style": "rere"}, {"separator": " / "}, {"template": "Seen:{history}"}], ids=str)
def test_a_saved_catalogue_keeps_its_prompt(prompt: dict[str, Any], tmp_path: Path) -> None:
    catalog = catalog_of(TOKENIZERS["chat"](), **prompt)
    catalog.save(tmp_path)
    loaded = Catalog.load(tmp_path)
    assert prompts_of(loaded, HISTORIES) == prompts_of(catalog, HISTORIES)
    assert loaded.one_target == catalog.one_target
    catalog.save(tmp_path)  # it is the very one
    with pytest.raises(ValueError, match="holds another catalogue"):
        catalog_of(TOKENIZERS["chat"](), style="minionerec").save(tmp_path)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real interactions at {REAL_DATA}")
def test_real_titles_are_nearly_all_spelled_as_in_the_whole_text() -> None:
    dataset = load_dataset(REAL_DATA / "office")
    assert dataset.items.titles is not None
    titles = [title or "" for title in dataset.items.titles]
    tokenizer = chat_tokenizer([*titles[:500], STYLES["rere"].text], 2000)
    catalog = build_catalog(
        dataset, tokenizer, CatalogConfig(item_tokens="title"), training_sequences=[], prompt=PromptConfig("rere")
    )
    some = range(0, len(titles), 6)
    prompts = prompts_of(catalog, [[item] for item in some])
    texts = [STYLES["rere"].text.replace("{history}", f'"{catalog.title(item)}"') for item in some]
    assert [tokenizer.decode(prompt) for prompt in prompts] == texts
    whole = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    same = np.mean([ours == theirs for ours, theirs in zip(prompts, whole, strict=True)])
    assert same > 0.95  # others begin or end with punctuation, which the tokenizer joins to the quote
