"""Shared-prefix forwards: a prompt and all that follows it in one sequence, kept apart by a mask.

The prompt comes first, then every completion token once. A mask says who sees whom: a token sees its prompt, its
ancestors and itself. Position ids say how deep it stands. So the keys and values of a prompt are computed and stored
once a prompt, not once a beam, and choosing a parent is an index on the mask, not a copy of the cache. This works
through transformers' own forward, which takes a 4-D mask and position ids.

This module knows nothing of items, tries, rewards or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from .attention.decode import DecodeAttention, SharedPrompt
from .attention.masks import causal, full_attention_mask, has_window, model_mask
from .attention.switch import attending
from .backbone import Backbone
from .packing import decoder_states, packs

# What all prompts begin with is run once where that saves this share of their tokens: it takes an attention more. Seen
# to pay on the CPU; on a GPU, where the rest of a prompt then attends under a mask, not measured.
MIN_COMMON_SHARE = 0.1


@dataclass(frozen=True)
class Prompt:
    """A prefilled prompt: the cache, and what later tokens need to know of it."""

    cache: Cache
    last_hidden: Tensor  # [B, H], the state that predicts the first completion token
    key_mask: Tensor  # bool [B, P], False = padding
    key_positions: Tensor  # int64 [B, P]
    lengths: Tensor  # int64 [B], tokens of each prompt
    is_padded: bool  # whether some key may be padding

    def detached(self) -> Prompt:
        """The same keys, values and states without a gradient, in a cache of its own to be appended to."""
        cache = copied_cache(self.cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return replace(self, cache=cache, last_hidden=self.last_hidden.detach())


def check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Refuse anything but a non-empty batch: input_ids int64 [B, P], attention_mask [B, P]. Values: `prompt_batch`."""
    for name, value in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor [B, P], got {type(value).__name__}")
    if input_ids.dim() != 2 or input_ids.dtype != torch.int64:
        raise ValueError(f"input_ids: expected int64 [B, P], got {input_ids.dtype} {list(input_ids.shape)}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected the shape of input_ids {list(input_ids.shape)}, got {list(attention_mask.shape)}"
        )
    if len(input_ids) == 0:
        raise ValueError("input_ids: expected at least one prompt, got none")
    if attention_mask.device != input_ids.device:
        raise ValueError(
            f"attention_mask: expected device {input_ids.device} as input_ids, got {attention_mask.device}"
        )
    if input_ids.shape[1] == 0:
        raise ValueError("input_ids: expected prompts of at least one token, got none")


def _check_mask(is_binary: bool, ends_real: bool, has_hole: bool) -> None:
    if not is_binary:
        raise ValueError("attention_mask: expected zeros and ones, got other values")
    if not ends_real:
        raise ValueError("attention_mask: expected left-padded prompts of at least one token (last column all 1)")
    if has_hole:
        raise ValueError("attention_mask: expected left-padded prompts (zeros, then ones), got a hole")


@dataclass(frozen=True)
class PromptBatch:
    """Prompts shifted to begin at the first column, so that what all begin with stands in equal columns."""

    input_ids: Tensor  # int64 [B, P]
    lengths: Tensor  # int64 [B]
    key_mask: Tensor  # bool [B, P], False = padding, at the end
    positions: Tensor  # int64 [B, P]
    is_padded: bool
    common: int  # C, columns that are run once for all prompts

    @property
    def ends(self) -> Tensor:
        """bool [B, P], the last token of each prompt."""
        return self.positions == self.lengths[:, None] - 1


def prompt_batch(model: Backbone, input_ids: Tensor, attention_mask: Tensor, *, cached: bool = False) -> PromptBatch:
    """input_ids int64 [B, P] left-padded, attention_mask [B, P]. cached: their keys and values are kept.

    Raises ValueError for a mask that is not zeros, then ones, with a token in each row.
    """
    batch, length = input_ids.shape
    real = attention_mask.bool()
    lengths = real.sum(-1)
    positions = torch.arange(length, device=real.device).expand(batch, -1)
    key_mask = positions < lengths[:, None]
    input_ids = input_ids.gather(1, (positions + (length - lengths)[:, None]) % length)
    alike = (input_ids == input_ids[:1]).all(0).long().cumprod(0).sum()
    is_binary = ((attention_mask == 0) | (attention_mask == 1)).all()
    has_hole = (real[:, :-1] & ~real[:, 1:]).any()
    # Read in one go: each reading waits for the device.
    known = torch.stack((alike, lengths.min(), lengths.sum(), is_binary, real[:, -1].all(), has_hole))
    equal_columns, shortest, total, *of_mask = known.tolist()
    _check_mask(*map(bool, of_mask))
    is_padded = total < input_ids.numel()
    common = min(equal_columns, shortest - 1)  # a prompt's end is its own
    saves_enough = common * (batch - 1) >= MIN_COMMON_SHARE * total
    if not saves_enough or not packs(model, cached=cached) or has_window(model.config):
        common = 0
    return PromptBatch(input_ids, lengths, key_mask, positions, is_padded, common)


def prefill(model: Backbone, input_ids: Tensor, attention_mask: Tensor) -> Prompt:
    """Run each prompt once and keep its keys and values. input_ids int64 [B, P] left-padded, attention_mask [B, P].

    What all prompts begin with is run once for all. In the cache they begin at the first key: there a model's own
    causal mask is right, and attention skips what it hides. Differentiable, cache included.
    """
    prompts = prompt_batch(model, input_ids, attention_mask, cached=True)
    is_packed = packs(model, cached=True)
    needs_mask = prompts.common > 0 or (has_window(model.config) if is_packed else prompts.is_padded)
    mask = None
    if needs_mask:
        visible = causal(prompts.key_mask)[:, prompts.common :]  # [B, P - C, P]
        mask = model_mask(model.config, visible, prompts.positions[:, prompts.common :], prompts.positions, model.dtype)
    cache = DynamicCache()  # without a config every layer keeps all keys; windows are the mask's business
    last_hidden = decoder_states(
        model,
        prompts.input_ids,
        prompts.positions,
        prompts.key_mask,
        prompts.ends,
        mask,
        cache,
        common=prompts.common,
    )  # [B, H]
    if cache.get_seq_length() != input_ids.shape[1]:
        raise ValueError(
            "model: it keeps no cache (gradient checkpointing in training mode does that): call model.eval()"
        )
    return Prompt(cache, last_hidden, prompts.key_mask, prompts.positions, prompts.lengths, prompts.is_padded)


@dataclass(frozen=True)
class Block:
    """Tokens that are run together behind prompts, S at most for each."""

    tokens: Tensor  # int64 [B, S], any valid ones where there is none
    depths: Tensor  # int64 [B, S], tokens between prompt and token
    exists: Tensor  # bool [B, S]
    wanted: Tensor  # bool [B, S], those whose states are given back
    visible: Tensor  # bool [B, S, A + S], which of the A tokens appended before and of these each sees, itself too


def states_behind(
    model: Backbone, prompt: Prompt, cache: Cache, block: Block, appended: Tensor | None = None
) -> Tensor:
    """Hidden states of a block where they are wanted: [R, H], prompt after prompt. Differentiable.

    cache: the prompts' keys and values, then those of the A tokens appended before; it gets the block's too.
    appended: int64 [B, A], the depths of these; None: none.
    """
    size = block.tokens.shape[1]
    positions = prompt.lengths[:, None] + block.depths  # [B, S]
    before = [] if appended is None else [prompt.lengths[:, None] + appended]
    key_positions = torch.cat((prompt.key_positions, *before, positions), dim=1)  # [B, P + A + S]
    visible = torch.cat((prompt.key_mask[:, None].expand(-1, size, -1), block.visible), dim=2)
    mask = model_mask(model.config, visible, positions, key_positions, model.dtype)
    return decoder_states(model, block.tokens, positions, block.exists, block.wanted, mask, cache)


class ChainTree:
    """The beams of a decode that moves in blocks: each beam is appended a chain of any length, none included."""

    def __init__(self, model: Backbone, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        batch, device = len(prompt.lengths), prompt.lengths.device
        self._ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)  # [B, W, A]
        self._depths = torch.zeros(batch, 0, dtype=torch.int64, device=device)  # [B, A]

    def select(self, parents: Tensor) -> None:
        """Go on with new beams: int64 [B, W], the old one that each comes from."""
        self._ancestors = self._ancestors.gather(1, parents[..., None].expand(-1, -1, self._ancestors.shape[2]))

    def append(self, tokens: Tensor, depths: Tensor, exists: Tensor, wanted: Tensor) -> Tensor:
        """Run a chain behind each beam.

        Args:
            tokens: int64 [B, W, C], the chains; any valid tokens where there is none.
            depths: int64 [B, W, C], tokens between prompt and token.
            exists, wanted: bool [B, W, C], the tokens of the chains, at the front, and those whose states are wanted.

        Returns:
            [R, H], the states wanted, in the order of [B, W, C].
        """
        width, longest = tokens.shape[1:]
        present = exists.flatten(1)  # [B, W * C]
        size = int(present.sum(1).max())
        slots = present.byte().argsort(dim=1, descending=True, stable=True)[:, :size]  # [B, S]
        exists_in, wanted_in = present.gather(1, slots), wanted.flatten(1).gather(1, slots)
        owners, places = slots // longest, slots % longest
        is_own = owners[:, None] == torch.arange(width, device=slots.device)[:, None]
        is_own &= exists_in[:, None]  # [B, W, S]
        before = self._ancestors.gather(1, owners[..., None].expand(-1, -1, self._ancestors.shape[2]))  # [B, S, A]
        among = is_own.gather(1, owners[..., None].expand(-1, -1, size)) & (places[:, :, None] >= places[:, None])
        among.diagonal(dim1=1, dim2=2).fill_(True)  # what only fills up sees itself too: no softmax is over nothing
        block = Block(
            tokens=tokens.flatten(1).gather(1, slots),
            depths=depths.flatten(1).gather(1, slots),
            exists=exists_in,
            wanted=wanted_in,
            visible=torch.cat((before, among), dim=2),
        )
        states = states_behind(self._model, self._prompt, self._prompt.cache, block, self._depths)
        self._ancestors = torch.cat((self._ancestors, is_own), dim=2)
        self._depths = torch.cat((self._depths, block.depths), dim=1)
        return states


class BeamTree:
    """The beams of a decode, appended to their prompt's sequence level by level, never moved.

    Holds, for each live beam, which of the appended tokens are its ancestors.
    """

    def __init__(self, model: Backbone, prompt: Prompt, *, attention: DecodeAttention | None = None) -> None:
        """attention: how the steps attend to the prompt, for models with sdpa attention; None: by rule."""
        uses_sdpa = model.config._attn_implementation == "sdpa"
        if attention == "split" and not uses_sdpa:
            raise ValueError("attention: 'split' needs a model with attn_implementation='sdpa'")
        self._model = model
        self._prompt = prompt
        self._attention = attention
        # The rule never splits on the CPU: there it is not even asked.
        self._may_split = attention == "split" or (
            attention is None and uses_sdpa and prompt.key_mask.device.type == "cuda"
        )
        self._depth = 0
        batch = prompt.key_mask.shape[0]
        self._ancestors = torch.zeros(batch, 1, 0, dtype=torch.bool, device=prompt.key_mask.device)  # [B, W, keys]
        self._key_positions = prompt.key_positions  # [B, P + appended tokens]

    def append(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Append one token a beam and run it.

        Args:
            tokens: int64 [B, W], the token of each new beam (any valid token for a dead one).
            parents: int64 [B, W], index of each beam's parent among the beams appended last (0 at the first call).

        Returns:
            hidden [B, W, H]: the states that predict each beam's next token.
        """
        batch, width = tokens.shape
        ancestors = self._ancestors.gather(1, parents[..., None].expand(-1, -1, self._ancestors.shape[2]))
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)
        self._ancestors = torch.cat((ancestors, itself), dim=2)  # [B, W, appended]
        positions = (self._prompt.lengths + self._depth)[:, None].expand(-1, width)  # [B, W]
        self._key_positions = torch.cat((self._key_positions, positions), dim=1)
        self._depth += 1

        visible = torch.cat((self._prompt.key_mask[:, None].expand(-1, width, -1), self._ancestors), dim=2)
        mask = model_mask(self._model.config, visible, positions, self._key_positions, self._model.dtype)
        with attending(self._step(mask)):
            return self._model.decoder(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._model.cache_argument: self._prompt.cache},
            ).last_hidden_state

    def _step(self, mask: Any) -> SharedPrompt | None:
        full = full_attention_mask(self._model.config, mask) if self._may_split else None
        if full is None:
            return None
        return SharedPrompt(full, self._prompt.key_mask.shape[1], self._prompt.is_padded, self._attention)


def copied_cache(cache: Cache) -> DynamicCache:
    """A cache of the same keys and values, to be appended to on its own."""
    copied = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys[:, :, :0], layer.values[:, :, :0], index)
        copied.layers[index].keys, copied.layers[index].values = layer.keys, layer.values
    return copied
