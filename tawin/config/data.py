"""Options of what is trained on: the split, the synthetic catalogue, items as tokens, the text of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .checks import require, require_choices, require_type

VectorSource = Literal["cooccurrence", "text", "file"]
ItemTokens = Literal["item", "semantic_id", "title"]
RLPrompts = Literal["last", "all"]


@dataclass(frozen=True)
class SplitConfig:
    """Which interactions are trained on, and by which stage."""

    method: Literal["leave_one_out", "time", "none"] = "leave_one_out"
    """leave_one_out: each user's last item is for test, the one before for valid. time: what is before a point in time
    is for training, a user's first interaction after it for valid, the first after a second point for test; the data
    needs times, and users who did nothing in a period are no example of it. none: everything is for training, of a
    model to serve; nothing is evaluated, and each stage keeps its last model."""
    valid_share: float = 0.1
    """Of a split by time: share of all interactions that are in the valid period."""
    test_share: float = 0.1
    """Of a split by time: share of all interactions that are in the test period, the last ones."""
    max_history: int = 10
    """Items of history in a prompt, the most recent ones."""
    rl_share: float = 1.0
    """Share of the users whose last training interactions are kept from SFT, as a prompt for RL."""
    rl_targets: int = 1
    """Training interactions that are kept of each of these users, the last ones; RL's reward is for any of them. A user
    with too few keeps one for the history; SFT leaves out a user who has no two items left."""
    rl_seen: int = 0
    """Of these targets, the first ones that SFT is trained on all the same. 0: RL's prompts ask for what the model has
    not seen; as many as `rl_targets`: SFT is trained on everything, and RL asks for it again."""

    rl_prompts: RLPrompts = "last"
    """Prompts of each of these users. last: one, before the targets that are kept. all: one before each training item
    but the first, as MiniOneRec and ReRe have them; SFT may have seen all of them but the kept ones."""

    def __post_init__(self) -> None:
        require_type("split.rl_targets", self.rl_targets, int)
        require(self.rl_targets >= 1, "split.rl_targets", "at least 1", self.rl_targets)
        require_type("split.rl_seen", self.rl_seen, int)
        require(0 <= self.rl_seen <= self.rl_targets, "split.rl_seen", "0..rl_targets", self.rl_seen)
        require(
            self.rl_prompts == "last" or self.rl_targets == 1,
            "split.rl_targets",
            "1 with split.rl_prompts 'all', where every item is the target of one prompt",
            self.rl_targets,
        )
        require(self.max_history >= 1, "split.max_history", "at least 1", self.max_history)
        require(0.0 <= self.rl_share <= 1.0, "split.rl_share", "a share in [0, 1]", self.rl_share)
        for name in ("valid_share", "test_share"):
            require(0.0 < getattr(self, name) < 1.0, f"split.{name}", "a share in (0, 1)", getattr(self, name))
        sum_of_shares = self.valid_share + self.test_share
        require(sum_of_shares < 1.0, "split.valid_share", "a sum with split.test_share below 1", sum_of_shares)
        require_choices(self, "split")


@dataclass(frozen=True)
class SyntheticConfig:
    """The catalogue that is made when no --data is given."""

    num_users: int = 4000
    """Users, each with one sequence of items."""
    num_items: int = 500
    """Items of the catalogue."""
    num_clusters: int = 25
    """Groups of like items; what comes next depends on the groups of the last items."""
    min_length: int = 5
    """Items of the shortest sequence."""
    max_length: int = 8
    """Items of the longest sequence."""

    def __post_init__(self) -> None:
        require(self.num_users >= 1, "synthetic.num_users", "at least 1", self.num_users)
        require(2 <= self.num_clusters <= self.num_items, "synthetic.num_clusters", "2..num_items", self.num_clusters)
        require(3 <= self.min_length <= self.max_length, "synthetic.min_length", "3..max_length", self.min_length)


@dataclass(frozen=True)
class CatalogConfig:
    """How an item becomes tokens."""

    item_tokens: ItemTokens = "semantic_id"
    """item: a new token for every item, the strongest where there is data on most items. semantic_id: new tokens, one
    range a level, which close items share. title: the tokenizer's own tokens of the title and an end token."""
    initialize: bool = True
    """With item_tokens 'item' a new token begins at its item's vector (`vectors_from`), at the scale of the model's own
    embeddings; False: at random."""
    separate_shared_ids: bool = True
    """Items that share a semantic id are told apart by an extra last token."""
    rebuild_ids: bool = False
    """Semantic ids are built here although the data has some: worth a try where those are made of texts, as built ones
    hold what users take together."""
    levels: int = 3
    """Levels of semantic ids that are built here (ignored where the data's are used)."""
    codes: int = 256
    """Codes a level of semantic ids that are built here (fewer where the catalogue is small)."""
    vectors: str | None = None
    """A .npy of item vectors [items, dimensions], row i the item in row i of items.parquet."""
    text_encoder: str | None = None
    """Folder or hub name of a Hugging Face encoder that makes item vectors of the titles."""
    vectors_from: tuple[VectorSource, ...] = ()
    """What item vectors, which ids are built from and tokens begin at, are made of: co-occurrence in the training data,
    `text_encoder`, `vectors`. Of several, each is brought to unit length and they are put side by side. None named:
    file where there is one, else cooccurrence, and text where there is an encoder."""
    extend: bool = False
    """Items that the run of --model knows keep their tokens, whatever else is in the data; others get new ones, or the
    nearest free semantic ids. `tawin extend` sets it."""
    instruction: str = ""
    """Text before every history, where `prompt` has none; needs a --model with a tokenizer of its own, or title
    mode."""

    def __post_init__(self) -> None:
        for name in ("levels", "codes"):
            require_type(f"catalog.{name}", getattr(self, name), int)
        require_type("catalog.separate_shared_ids", self.separate_shared_ids, bool)
        require_type("catalog.rebuild_ids", self.rebuild_ids, bool)
        require_type("catalog.initialize", self.initialize, bool)
        require_type("catalog.extend", self.extend, bool)
        for name, source, value in (("vectors", "file", self.vectors), ("text_encoder", "text", self.text_encoder)):
            named, expected = source in self.vector_sources, f"a name, as vectors_from has {source!r}"
            require(value is not None or not named, f"catalog.{name}", expected, value)
            require(value is None or named, f"catalog.{name}", f"None, as vectors_from has no {source!r}", value)
        sources = get_args(VectorSource)
        distinct = set(self.vectors_from) <= set(sources) and len(set(self.vectors_from)) == len(self.vectors_from)
        require(distinct, "catalog.vectors_from", f"distinct ones of {sources}", self.vectors_from)
        require_choices(self, "catalog")
        require(1 <= self.levels <= 8, "catalog.levels", "1..8", self.levels)
        require(2 <= self.codes <= 65536, "catalog.codes", "2..65536", self.codes)
        require(
            not self.rebuild_ids or self.item_tokens == "semantic_id",
            "catalog.rebuild_ids",
            "False where items are no semantic ids",
            self.rebuild_ids,
        )

    @property
    def vector_sources(self) -> tuple[VectorSource, ...]:
        """`vectors_from`, decided."""
        if self.vectors_from:
            return self.vectors_from
        if self.vectors is not None:
            return ("file",) if self.text_encoder is None else ("file", "text")
        return ("cooccurrence",) if self.text_encoder is None else ("cooccurrence", "text")


@dataclass(frozen=True)
class PromptConfig:
    """The text around a history, for models that read text: see docs/PRETRAINED.md."""

    style: Literal["plain", "rere", "minionerec"] = "plain"
    """What template, item and separator are where they are None. plain: the items alone, one after another, as they
    are completed; rere: quoted titles in an instruction; minionerec: semantic ids in an instruction."""
    template: str | None = None
    """The text of a prompt, with {history} once."""
    item: str | None = None
    """How an item is written in a history, with {item} once."""
    separator: str | None = None
    """What stands between two items of a history."""
    chat: bool = False
    """The template is the user's message in the tokenizer's own chat template; the item is the answer."""
    system: str = ""
    """The system message of a chat."""
    title_words: int | None = None
    """Words of each title within a history, at most: prompts of long titles become short. The answer is the whole
    title. None: all."""

    def __post_init__(self) -> None:
        require_choices(self, "prompt")
        require(self.title_words is None or self.title_words >= 1, "prompt.title_words", "at least 1", self.title_words)
        require_type("prompt.chat", self.chat, bool)
        for name, slot in (("template", "{history}"), ("item", "{item}")):
            text = getattr(self, name)
            require(text is None or text.count(slot) == 1, f"prompt.{name}", f"text with {slot} once", text)
        require(self.chat or not self.system, "prompt.system", "'' without prompt.chat", self.system)

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands around the items."""
        return self == PromptConfig()
