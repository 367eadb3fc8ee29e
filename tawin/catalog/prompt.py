"""Prompts: the text around a history, and the tokens that it becomes.

A prompt is the template's text with the history in it, or a chat whose user message that is. Its tokens are put
together from pieces: what stands before the first item, between two items and behind the last one, and the items
themselves. A piece ends where the text of an item begins or ends, so the text of a prompt is always the template's, to
the letter. The tokens are those that the tokenizer gives for the whole text wherever none of them spans such a border.
Knows tokenizers and texts, not items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..config import PromptConfig
from .tokenizer import name_of, prefix_tokens, require_reads_text, title_tokens, tokens_within

HISTORY, ITEM = "{history}", "{item}"


@dataclass(frozen=True)
class Template:
    """The text of a prompt, as `PromptConfig` has it."""

    text: str
    item: str
    separator: str


STYLES: dict[str, Template] = {
    "plain": Template(HISTORY, ITEM, ""),
    # As ReRe and D3 prompt with titles: an instruction, the history in quotes, an answer. The words are our own.
    "rere": Template(
        "Below is an instruction with an input that goes with it. Write the response that it asks for.\n\n"
        "### Instruction:\nGiven the items that a user has liked, name the one that the user will like next.\n\n"
        "### User Input:\nThe user has liked the following items before: {history}\n\n"
        "### Response:\n",
        '"{item}"',
        ", ",
    ),
    # As MiniOneRec prompts with semantic ids.
    "minionerec": Template(
        "Below is an instruction with an input that goes with it. Write the response that it asks for.\n\n"
        "### Instruction:\nPredict the next item that the user will choose.\n\n"
        "### User Input:\nThe user has chosen the items {history}, in this order. Which item will come next?\n\n"
        "### Response:\n",
        "{item}",
        ", ",
    ),
}
"""By `prompt.style`."""

# Behind these a title follows at once, behind other text after a space.
_OPENS = tuple(" \t\n\r\"'`([{<«“„‘")  # noqa: RUF001

TitleForm = Literal["spaced", "bare", "ended"]
Completion = Literal["spaced", "bare"]
"""How a title is written: " title", "title", or " title" and the end token."""
_LEADS = {"spaced": " ", "bare": "", "ended": " "}


@dataclass(frozen=True)
class PromptTokens:
    """All of a prompt but its items."""

    prefix: tuple[int, ...]
    """Before the first item; never empty."""
    separator: tuple[int, ...]
    suffix: tuple[int, ...]
    """Behind the last item."""
    empty: tuple[int, ...]
    """The whole prompt of a history without items."""
    title: TitleForm
    """Of the titles within a history."""
    completion: Completion
    """Of the title that completes a prompt; the end token follows it."""
    title_words: int | None = None
    """Words of a title within a history, at most; None: all."""

    def spell(self, titles: Sequence[str], tokenizer: Any) -> tuple[list[list[int]], list[list[int]] | None]:
        """The tokens of titles that complete a prompt, and of titles within a history; None: the same."""
        tokens = title_tokens(titles, tokenizer, lead=_LEADS[self.completion])
        if self.title_words is not None:
            titles = [" ".join(title.split()[: self.title_words]) for title in titles]
        elif (self.title, self.completion) == ("ended", "spaced"):
            return tokens, None
        return tokens, title_tokens(titles, tokenizer, lead=_LEADS[self.title], ends=self.title == "ended")


def template_of(config: PromptConfig) -> Template:
    """The style's template with what the config has in place of it."""
    style = STYLES[config.style]
    given = (config.template, config.item, config.separator)
    parts = (style.text, style.item, style.separator)
    return Template(*(part if own is None else own for own, part in zip(given, parts, strict=True)))


def prompt_tokens(tokenizer: Any, config: PromptConfig, instruction: str = "", *, titles: bool = False) -> PromptTokens:
    """What stands around the items of a history, as tokens of `tokenizer`.

    A prompt begins with the bos token where there is one; a chat, as its template has it. Special tokens that the
    template spells are read as such. A space right before an item belongs to its first token where all items have one.

    Args:
        instruction: text before a history whose config is plain.
        titles: whether the items are titles.

    Raises:
        ValueError: text for a tokenizer that reads single words only, a chat for one without a chat template or with
            one that leaves the message out, titles in a chat that nothing parts.
    """
    template = template_of(config)
    opens, closes = template.item.split(ITEM)
    writes_items = bool(opens or closes or template.separator)
    if not (writes_items or config.chat) and template.text == HISTORY:
        prefix = prefix_tokens(tokenizer, instruction)
        return PromptTokens(prefix, (), (), prefix, "ended", "spaced", config.title_words)
    if config.chat and titles and not writes_items:
        raise ValueError("prompt.separator: expected text between the titles of a chat (', ', say), got ''")
    require_reads_text(tokenizer, "a prompt of one's own")

    before, after = _chat(tokenizer, config, template) if config.chat else template.text.split(HISTORY)
    texts = [before + opens, closes + template.separator + opens, closes + after]
    form: TitleForm = "ended" if titles and not writes_items else "bare"
    if titles and writes_items and all(text.endswith(" ") for text in texts[:2]):
        form = "spaced"
        texts[:2] = (text[:-1] for text in texts[:2])
    completion: Completion = "bare" if texts[2].endswith(_OPENS) else "spaced"
    if titles and texts[2].endswith(" "):
        completion = "spaced"
        texts[2] = texts[2][:-1]
    separator, suffix = tokens_within(texts[1:], tokenizer, special=True)
    return PromptTokens(
        prefix=_beginning(tokenizer, texts[0], config.chat),
        separator=tuple(separator),
        suffix=tuple(suffix),
        empty=_beginning(tokenizer, before + (after[:-1] if titles and after.endswith(" ") else after), config.chat),
        title=form,
        completion=completion,
        title_words=config.title_words,
    )


def _beginning(tokenizer: Any, text: str, chat: bool) -> tuple[int, ...]:
    """The tokens of text that begins a prompt. A chat's template writes the bos token itself."""
    if chat and text:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prefix_tokens(tokenizer, text)


def _chat(tokenizer: Any, config: PromptConfig, template: Template) -> tuple[str, str]:
    """The text of a chat before and behind the history, up to where the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"prompt.chat: {name_of(tokenizer)}: expected a tokenizer with a chat template, got one without; take an "
            "instruction-tuned model, or leave prompt.chat out"
        )
    mark = "\ue000history\ue000"  # of the private use area: no template has it
    messages = [{"role": "user", "content": template.text.replace(HISTORY, mark)}]
    if config.system:
        messages.insert(0, {"role": "system", "content": config.system})
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a chat template raises what it likes: jinja2's errors for roles that it does not know
        raise ValueError(f"prompt.chat: {name_of(tokenizer)}: its chat template refuses the prompt: {error}") from error
    if text.count(mark) != 1:
        raise ValueError(
            f"prompt.chat: {name_of(tokenizer)}: expected a chat template that has the user's message once, got it "
            f"{text.count(mark)} times"
        )
    before, after = text.split(mark)
    return before, after
