"""Training steps that are measured: the model, the catalogue, a batch of prompts and the options of each.

On the CPU the small Qwen2 of `cases` in fp32 on the industrial catalogue, 16 prompts, real histories (of about five
items) where the data folder is there. ReRe and MiniOneRec put an instruction before the history: "instruction" draws
one of 100 tokens, "bare" has the history alone. On a GPU the shape of Qwen2.5-0.5B with random weights in bf16
autocast, 64 prompts of about 256 tokens: "ids" of four tokens and "titles" of up to 24. "+kl": beta 1e-3, ReRe's
setting, with a reference whose weights differ a little from the policy's, as after some steps.

Random weights rank no target high, so nearly every group would be dead. In a fifth of the groups, between the .18 and
.7 seen in training, the target is set to what the policy's own beam search finds, at ranks spread over the group; in
the others it is an item that is not found. Nothing here reads a clock.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from tawin_kernels import ItemTrie
from torch import Tensor, nn

from tawin.catalog.catalog import Catalog
from tawin.catalog.encoding import PADDING
from tawin.config import Config, GRPOConfig, TAWinConfig
from tawin.data.dataset import Examples, split_leave_one_out
from tawin.model.policy import evaluating
from tawin.run.folder import RunFolder
from tawin.search.completions import beam_sequences
from tawin.train.engine import Stage

from ..cases.ratios import QWEN2_5_HALF_BILLION, PolicyShape, draw_semantic_ids, industrial_dataset, make_model
from ..peers import PrefixTable
from ..peers.grpo_step import users_adamw

BOS, END, PAD = 1, 2, 0
CODES = 256  # a level
ID_CHILDREN = (48, 48, 4, 2)  # of every node, level by level: 18,432 items
LONGEST_TITLE = 24  # tokens, the end token included
_SMALL = PolicyShape()


@dataclass(frozen=True)
class StepSetting:
    """What a step is like."""

    name: str
    catalogue: str = "industrial"  # or "ids" or "titles", which are drawn
    model: PolicyShape = _SMALL
    prompts: int = 16
    instruction: int = 100  # tokens before the history, <bos> included
    history: int = 10  # items at most; drawn histories have all of them
    beta: float = 0.0
    reference_noise: float = 0.01  # on every weight of the reference, of the weights' own spread
    group_size: int = 16
    titles: int = 20_000  # of a drawn catalogue of titles
    hit_share: float = 0.2
    is_windowed: bool = True  # TAWin; else plain GRPO advantages
    prompts_at_once: dict[str, int] = field(default_factory=dict)  # way -> prompts; a way left out takes all at once
    checked_prompts: int | None = None  # the ways are compared on so many, None: on all

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.catalogue}, {self.group_size} beams, hidden {self.model.hidden_size}, "
            f"{self.model.layers} layers, beta {self.beta:g}"
        )

    def at_once(self, way: str) -> int:
        return min(self.prompts, self.prompts_at_once.get(way, self.prompts))


# 4 prompts are ReRe's own 64 completions at once. All of a GPU's 64 prompts would not fit as it runs them.
_CPU = StepSetting("instruction", prompts_at_once={"rere": 4})
_GPU = StepSetting(
    "ids",
    catalogue="ids",
    model=QWEN2_5_HALF_BILLION,
    prompts=64,
    history=39,
    prompts_at_once={"rere": 4, "shared_prefix": 16, "shared_prefix_plain": 16},
    checked_prompts=4,
)
_TITLES = replace(_GPU, name="titles", catalogue="titles", history=10)

CPU_SETTINGS = {
    setting.name: setting
    for setting in (
        _CPU,
        replace(_CPU, name="instruction+kl", beta=1e-3),
        replace(_CPU, name="bare", instruction=1),
        replace(_CPU, name="bare+kl", instruction=1, beta=1e-3),
    )
}
GPU_SETTINGS = {
    setting.name: setting
    for setting in (
        _GPU,
        replace(_GPU, name="ids+kl", beta=1e-3),
        _TITLES,
        replace(_TITLES, name="titles+kl", beta=1e-3),
    )
}


def settings_for(device: torch.device) -> dict[str, StepSetting]:
    return GPU_SETTINGS if device.type == "cuda" else CPU_SETTINGS


@dataclass(frozen=True, eq=False)
class StepCase:
    """A setting made: everything that the ways share."""

    setting: StepSetting
    catalogue: str  # where items and histories come from
    catalog: Catalog  # on the device
    table: PrefixTable  # the same for the peers
    chosen: Examples  # the batch
    config: Config
    stage: Stage  # ours: the model, prepared, and its optimizer
    reference: nn.Module | None
    peer_optimizer: torch.optim.Optimizer  # of the same model; the ways take turns
    start: list[Tensor]  # the weights that every step begins with
    folder: tempfile.TemporaryDirectory[str]  # of the run that a Stage belongs to

    @property
    def model(self) -> Any:
        return self.stage.model

    @property
    def device(self) -> torch.device:
        return self.stage.accelerator.device

    @property
    def histories(self) -> Sequence[np.ndarray]:
        return self.chosen.histories

    @property
    def target_tokens(self) -> list[tuple[int, ...]]:
        """Of each prompt."""
        rows = self.catalog.token_ids[torch.as_tensor(self.chosen.targets, device=self.device)].tolist()
        return [tuple(token for token in row if token != PADDING) for row in rows]

    def restore(self) -> None:
        """Put the weights back, so that all steps are the same step, and forget the gradients."""
        with torch.no_grad():
            for parameter, weight in zip(self.model.parameters(), self.start, strict=True):
                parameter.copy_(weight)
                parameter.grad = None


def make_case(setting: StepSetting, device: torch.device, *, exact: bool = False) -> StepCase:
    """The weights, prompts and targets of a setting, the same at every call.

    exact: fp32 throughout and no more prompts than `setting.checked_prompts`, to compare the ways. On the CPU
    everything is in fp32.
    """
    if exact and setting.checked_prompts is not None:
        setting = replace(setting, prompts=min(setting.prompts, setting.checked_prompts))
    items = _items(setting)
    catalog = _catalog(items, setting).to(device)
    cuda = device.type == "cuda"
    accelerator = Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if cuda else "no",
        kwargs_handlers=[AutocastKwargs(enabled=not exact)] if cuda else None,
    )
    levels = 0 if items.has_end else len(items.tokens[0])
    model = make_model(setting.model, levels, CODES, device=device)
    reference = (
        _near(make_model(setting.model, levels, CODES, device=device), setting.reference_noise)
        if setting.beta > 0
        else None
    )
    at_once = setting.at_once("ours")
    config = Config(
        grpo=GRPOConfig(
            learning_rate=1e-5,
            batch_size=at_once,
            gradient_accumulation=-(-setting.prompts // at_once),
            schedule="constant",
            warmup_share=0.0,
            group_size=setting.group_size,
            beta=setting.beta,
            tawin=TAWinConfig(enabled=setting.is_windowed),
        )
    )
    folder = tempfile.TemporaryDirectory()
    run = RunFolder.create(Path(folder.name) / "run", config)
    tokenizer: Any = None  # nothing is saved
    stage = Stage.start("grpo", accelerator, model, tokenizer, config.grpo, 1, run)
    rows = np.random.default_rng(0).choice(len(items.histories), setting.prompts, replace=False)
    histories = [items.histories[row] for row in rows]
    with accelerator.autocast():
        targets = _targets(stage.model, catalog, histories, items.targets[rows], setting)
    return StepCase(
        setting=setting,
        catalogue=items.name,
        catalog=catalog,
        table=_table(items),
        chosen=Examples(rows, histories, targets),
        config=config,
        stage=stage,
        reference=reference,
        peer_optimizer=users_adamw(stage.model, config.grpo),
        start=[parameter.detach().clone() for parameter in stage.model.parameters()],
        folder=folder,
    )


@dataclass(frozen=True, eq=False)
class _Items:
    """A catalogue and what users took. Tokens with the end token, where items have one."""

    name: str
    tokens: list[list[int]]
    has_end: bool
    histories: Sequence[np.ndarray]
    targets: np.ndarray  # int64, an item for each history


def _items(setting: StepSetting) -> _Items:
    draw = np.random.default_rng(1)
    if setting.catalogue == "titles":
        return _with_drawn_users(
            "drawn titles", draw_titles(setting.model.text_tokens, setting.titles), True, setting, draw
        )
    if setting.catalogue == "ids":
        return _with_drawn_users("drawn ids", _tokens_of(draw_ids(ID_CHILDREN), setting), False, setting, draw)
    dataset = industrial_dataset()
    if dataset is None:
        # Two to eight items of history, as the users of industrial have.
        drawn = _with_drawn_users(
            "drawn like industrial", _tokens_of(draw_semantic_ids(), setting), False, setting, draw
        )
        lengths = draw.integers(2, 9, len(drawn.histories))
        return replace(drawn, histories=[history[:n] for history, n in zip(drawn.histories, lengths, strict=True)])
    ids = np.array(dataset.items.semantic_ids, dtype=np.int64)
    users = split_leave_one_out(dataset, max_history=setting.history).rl
    return _Items("industrial", _tokens_of(ids, setting), False, users.histories, users.targets)


def _tokens_of(semantic_ids: np.ndarray, setting: StepSetting) -> list[list[int]]:
    """A range of tokens a level, behind those of text."""
    return (semantic_ids + setting.model.text_tokens + CODES * np.arange(semantic_ids.shape[1])).tolist()


def _with_drawn_users(
    name: str, tokens: list[list[int]], has_end: bool, setting: StepSetting, draw: np.random.Generator
) -> _Items:
    users = 4 * setting.prompts
    histories = list(draw.integers(len(tokens), size=(users, setting.history)))
    return _Items(name, tokens, has_end, histories, draw.integers(len(tokens), size=users))


def draw_ids(children: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """int64 [items, levels] below CODES: every prefix has as many distinct codes behind it as its level says."""
    draw = np.random.default_rng(seed)
    ids = np.zeros((1, 0), dtype=np.int64)
    for count in children:
        codes = draw.random((len(ids), CODES)).argsort(axis=1)[:, :count]
        ids = np.concatenate((ids.repeat(count, axis=0), codes.reshape(-1, 1)), axis=1)
    return ids


def draw_titles(text_tokens: int, count: int, longest: int = LONGEST_TITLE, seed: int = 0) -> list[list[int]]:
    """Distinct titles of 8 to `longest` tokens, END included, or shorter ones where `longest` is below 8.

    As shop titles do, they begin with one of a few hundred brands, common ones far more often, then a kind of product,
    then words as frequent as a Zipf law has them.
    """
    draw = np.random.default_rng(seed)

    def frequent(choices: int, size: int | tuple[int, ...]) -> np.ndarray:
        weights = 1 / np.arange(1, choices + 1)
        return draw.choice(choices, size, p=weights / weights.sum())

    first_word = END + 1
    words = min(20_000, text_tokens - first_word)
    brands = draw.integers(first_word, first_word + words, (300, 2))
    kinds = draw.integers(first_word, first_word + words, (500, 3))
    drawn = 2 * count  # some come twice
    rest = first_word + frequent(words, (drawn, longest))
    bodies = np.concatenate((brands[frequent(300, drawn)], kinds[frequent(500, drawn)], rest), axis=1)
    lengths = draw.integers(min(8, longest), longest + 1, drawn)
    titles = {(*body[: length - 1].tolist(), END): None for body, length in zip(bodies, lengths, strict=True)}
    return [list(title) for title in list(titles)[:count]]


def _catalog(items: _Items, setting: StepSetting) -> Catalog:
    """On the CPU. The instruction is text drawn once."""
    longest = max(map(len, items.tokens))
    token_ids = torch.tensor([[*tokens, *[PADDING] * (longest - len(tokens))] for tokens in items.tokens])
    text = torch.randint(END + 1, setting.model.text_tokens, (setting.instruction,), generator=_generator(2)).tolist()
    trie = ItemTrie.from_sequences(items.tokens)
    return Catalog(
        item_ids=np.arange(len(items.tokens)),
        titles=None,
        semantic_ids=None,
        token_ids=token_ids,
        trie=trie,
        item_nodes=trie.leaf_of_item,
        prefix=(BOS, *text[1:]),
        pad_token=PAD,
        end_token=END if items.has_end else None,
    )


def _table(items: _Items) -> PrefixTable:
    if items.has_end:
        return PrefixTable.from_sequences([tokens[:-1] for tokens in items.tokens], end_token=END)
    return PrefixTable.from_sequences(items.tokens)


def _near(model: Any, noise: float) -> nn.Module:
    """The model with noise on every weight, frozen."""
    generator = _generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter += noise * parameter.std() * drawn
    return model.requires_grad_(False)


def _targets(
    model: nn.Module, catalog: Catalog, histories: list[np.ndarray], taken: np.ndarray, setting: StepSetting
) -> np.ndarray:
    """int64 [B]: an item that the policy's beam search finds for a share of the prompts, for the others one it does
    not find, which is what the user took if that is so."""
    trie = catalog.trie
    device = trie.device
    input_ids, attention_mask = (tensor.to(device) for tensor in catalog.encode_histories(histories))
    with evaluating(model):
        found = beam_sequences(model, input_ids, attention_mask, trie, setting.group_size, cuda_graphs=False)
    nodes, leaves = found.nodes.cpu(), catalog.item_nodes.cpu()
    targets = np.array(taken, dtype=np.int64)
    hits = round(setting.hit_share * setting.prompts)
    for prompt in range(setting.prompts):
        if prompt < hits:
            rank = prompt * setting.group_size // hits
            targets[prompt] = int((leaves == nodes[prompt, rank]).nonzero()[0])
        else:
            while bool((nodes[prompt] == leaves[targets[prompt]]).any()):
                targets[prompt] = (targets[prompt] + 1) % catalog.num_items
    return targets


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
