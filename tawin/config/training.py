"""Options of the model and of its two stages: SFT, and GRPO with TAWin."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from tawin_kernels import TAWin
from tawin_kernels.ops.loss.types import LOSS_KINDS, LossType
from tawin_kernels.types import Normalizer, RankTransform

from .checks import require, require_choices

TokenCount = Literal["tokens", "choices"]


@dataclass(frozen=True)
class PolicyConfig:
    """The small decoder that is built when no --model is given, and LoRA for the one that is."""

    family: Literal["qwen2", "qwen3", "llama", "gemma3"] = "qwen2"
    """The architecture that is built; a --model brings its own."""
    hidden_size: int = 128
    """Size of a hidden state."""
    layers: int = 3
    """Decoder layers."""
    heads: int = 4
    """Attention heads of a layer, which share the hidden size; hidden_size / heads has to be even."""
    intermediate_size: int = 384
    """Inner size of a layer's MLP."""
    attention_dropout: float = 0.0
    """Of the attention's weights, in the decoder that is built."""
    hidden_dropout: float = 0.0
    """Of the embeddings and of what each layer's attention and MLP add to them, while training, a --model's too."""
    lora_rank: int = 0
    """Rank r of the adapters, which add 32 / r times their product; 0: train all weights."""
    checkpoint_activations: bool = False
    """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, a third more
    FLOPs."""

    def __post_init__(self) -> None:
        require(self.hidden_size >= 1, "policy.hidden_size", "at least 1", self.hidden_size)
        require(self.layers >= 1, "policy.layers", "at least 1", self.layers)
        require(
            self.heads >= 1 and self.hidden_size % (2 * self.heads) == 0,
            "policy.heads",
            f"a number such that hidden_size {self.hidden_size} splits into heads of even size",
            self.heads,
        )
        require(self.intermediate_size >= 1, "policy.intermediate_size", "at least 1", self.intermediate_size)
        for name in ("attention_dropout", "hidden_dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"policy.{name}", "in [0, 1)", getattr(self, name))
        require_choices(self, "policy")
        require(self.lora_rank >= 0, "policy.lora_rank", "0 or more", self.lora_rank)


@dataclass(frozen=True)
class OptimizerConfig:
    """What SFT and GRPO share."""

    learning_rate: float
    """The highest learning rate, after the warm-up."""
    batch_size: int
    """Sequences (SFT) or prompts (GRPO) of one forward, of all processes together."""
    gradient_accumulation: int = 1
    """Forwards of one optimizer step."""
    weight_decay: float = 0.01
    """AdamW's, a share of the learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to 0 along a cosine, or not at all."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW with fp32 moments, or with moments of 8 bits from bitsandbytes (paged: they may leave the GPU)."""

    _section = "optimizer"

    def __post_init__(self) -> None:
        name = self._section
        require(self.learning_rate > 0, f"{name}.learning_rate", "above 0", self.learning_rate)
        require(self.batch_size >= 1, f"{name}.batch_size", "at least 1", self.batch_size)
        require(
            self.gradient_accumulation >= 1, f"{name}.gradient_accumulation", "at least 1", self.gradient_accumulation
        )
        require(self.weight_decay >= 0, f"{name}.weight_decay", "0 or more", self.weight_decay)
        require_choices(self, name)
        require(0.0 <= self.warmup_share <= 1.0, f"{name}.warmup_share", "in [0, 1]", self.warmup_share)


@dataclass(frozen=True)
class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning: next-item tokens by cross-entropy, one sequence a user."""

    learning_rate: float = 2e-3
    batch_size: int = 64
    epochs: int = 10
    """Passes over the training sequences; 0: no SFT, GRPO starts from the model as it is."""
    max_steps: int | None = None
    """Optimizer steps after which SFT ends even within its epochs; the schedule is laid over what is left."""
    patience: int = 3
    """Evaluations without a better valid recall before SFT stops."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    negatives: int | None = None
    """Tokens of the vocabulary, drawn anew each step, from which the softmax's sum is estimated without bias (sampled
    softmax); 0: the whole softmax. None: 1,024 for the small decoder where items have over 8,192 tokens, else 0."""

    _section = "sft"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 0, "sft.epochs", "0 or more", self.epochs)
        require(self.max_steps is None or self.max_steps >= 1, "sft.max_steps", "at least 1, or None", self.max_steps)
        require(self.patience >= 1, "sft.patience", "at least 1", self.patience)
        require(self.evaluate_every >= 1, "sft.evaluate_every", "at least 1", self.evaluate_every)
        require(self.negatives is None or self.negatives >= 0, "sft.negatives", "0 or more, or None", self.negatives)


@dataclass(frozen=True)
class TAWinConfig:
    """TAWin: negatives are weighted around the anchor rank (docs/METHOD.md)."""

    enabled: bool = True
    """False: all negatives alike, plain GRPO."""
    anchor: float = 2.0
    """Zero-based rank among a group's negatives around which the weight lies; K - 1 for Top-K."""
    window: float = 3.0
    """How many negatives the weights are worth together; from the number of negatives on, all weights are 1."""
    temperature: float = 1.0
    """How softly the weights fall off with the distance to the anchor, in units of the transformed rank."""
    rank_transform: RankTransform = "identity"
    """What distances are measured in: the rank, log2(1 + rank), or rank / number of negatives."""
    anchor_start: float | None = None
    """The anchor of the first step, from which it goes to `anchor` of the last in equal steps; None: `anchor` from the
    start."""

    def __post_init__(self) -> None:
        try:
            self.kernel_options()
        except (ValueError, TypeError) as error:
            raise ValueError(f"grpo.tawin: {error}") from None
        start = self.anchor_start
        is_rank = start is None or 0.0 <= start < math.inf
        require(is_rank, "grpo.tawin.anchor_start", "0 or more and finite, or None", start)

    @property
    def moves(self) -> bool:
        """Whether the anchor of a step depends on its number."""
        return self.enabled and self.anchor_start is not None

    def at_step(self, step: int, steps: int) -> TAWinConfig:
        """As it is in step number `step`, from 0, of `steps`: with the anchor of that step, which does not move.

        Step 0 has anchor_start and the last one has `anchor`; a single step has `anchor`.
        """
        if self.anchor_start is None:
            return self
        last = steps - 1
        anchor = self.anchor
        if step < last:
            anchor = self.anchor_start + (self.anchor - self.anchor_start) * step / last
        return dataclasses.replace(self, anchor=anchor, anchor_start=None)

    def kernel_options(self) -> TAWin:
        """The same as the kernels take it, checked there; of an anchor that moves, where it comes to."""
        return TAWin(self.anchor, self.window, self.temperature, self.rank_transform)


@dataclass(frozen=True)
class GRPOConfig(OptimizerConfig):
    """Reinforcement learning: G completions per prompt, reward 1 for a target item."""

    learning_rate: float = 1e-4
    batch_size: int = 64
    steps: int | None = 100
    """Rollouts, at most; 0: no RL; None: as many as `epochs` take."""
    epochs: int | None = None
    """Passes over the RL prompts, at most; None: as many as `steps` take."""
    updates: int = 1
    """Optimizer updates on each step's rollout, at the step's learning rate (TRL's num_iterations)."""
    group_size: int = 16
    """G, completions per prompt; with beam negatives the width of the search too."""
    negatives: Literal["beam", "random", "sample"] = "beam"
    """Where the completions come from: constrained beam search, uniform over the catalogue, sampled from the policy."""
    normalizer: Literal["auto", "vocab", "trie"] = "auto"
    """What every log p is a softmax over, rollout, policy and reference alike: the whole vocabulary, or the tokens that
    can follow in the catalogue. auto: trie with negatives 'sample', which draws from it, else vocab."""
    ensure_positive: bool = False
    """Put the target into the group, in place of the last completion, where it is missing. Of several targets: the
    first one that is missing, unless the last completion is a target itself."""
    reward: str = "binary"
    """What a completion gets that is no target; a name in `rl.rewards.REWARDS`. binary: 0. ranking, as ReRe has it: a
    penalty that falls with its rank, -1 / log2(rank + 2), divided by the sum of that over the group; 0 in a group
    without a target."""
    loss_type: LossType = "grpo"
    """As in TRL; cispo takes epsilon_high as the largest ratio itself (5 is customary)."""
    count: TokenCount = "tokens"
    """What a mean over a completion's tokens counts: all of them, or with the trie as normalizer "choices", those that
    more than one token could have stood in for. The others have log p 0, so that length does not count."""
    epsilon_low: float = 0.2
    """Clip range of the ratio. With one update per rollout the ratio is 1: nothing is clipped, and gspo is grpo."""
    epsilon_high: float = 0.2
    """Its upper end, 1 + epsilon_high."""
    beta: float = 0.0
    """Weight of the KL to the reference model; 0 keeps no reference model and skips groups without gradient."""
    nll_weight: float = 0.0
    """Weight of the cross-entropy of each prompt's first target, nats a token, beside the loss of its group; 0: none.
    For prompts whose targets SFT has not seen, which so teach both."""
    normalize_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""
    evaluate_every: int = 20
    """Steps between evaluations on valid; the best checkpoint is kept, the SFT start included."""
    tawin: TAWinConfig = field(default_factory=TAWinConfig)

    _section = "grpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.steps is not None or self.epochs is not None
        require(ends, "grpo.steps", "a number where grpo.epochs is None", self.steps)
        require(self.steps is None or self.steps >= 0, "grpo.steps", "0 or more, or None", self.steps)
        require(self.epochs is None or self.epochs >= 1, "grpo.epochs", "at least 1, or None", self.epochs)
        require(self.updates >= 1, "grpo.updates", "at least 1", self.updates)
        require(2 <= self.group_size <= 512, "grpo.group_size", "2..512", self.group_size)
        require(0 <= self.epsilon_low < 1, "grpo.epsilon_low", "in [0, 1)", self.epsilon_low)
        require(self.epsilon_high >= 0, "grpo.epsilon_high", "0 or more", self.epsilon_high)
        require(self.beta >= 0, "grpo.beta", "0 or more", self.beta)
        require(0 <= self.nll_weight < math.inf, "grpo.nll_weight", "0 or more and finite", self.nll_weight)
        require(self.evaluate_every >= 1, "grpo.evaluate_every", "at least 1", self.evaluate_every)
        require(
            self.negatives != "random" or self.ensure_positive,
            "grpo.ensure_positive",
            "True with grpo.negatives 'random' (a random group almost never holds the target)",
            self.ensure_positive,
        )
        require(
            not LOSS_KINDS[self.loss_type].caps_ratio or self.epsilon_high >= 1,
            "grpo.epsilon_high",
            "at least 1 with grpo.loss_type 'cispo' (it is the largest ratio itself)",
            self.epsilon_high,
        )
        require(
            self.count == "tokens" or self.softmax_over == "trie",
            "grpo.count",
            "'tokens' with a softmax over the vocabulary, grpo.normalizer 'vocab' (every token is a choice there)",
            self.count,
        )
        require(
            self.negatives != "sample" or self.normalizer != "vocab",
            "grpo.normalizer",
            "'trie' or 'auto' with grpo.negatives 'sample' (tokens are drawn from the softmax over those that can "
            "follow: with another one in the loss, the policy that is trained is not the one that is sampled)",
            self.normalizer,
        )

    def steps_on(self, prompts: int) -> int:
        """Rollouts with so many RL prompts: what `steps` and `epochs` come to, whichever ends first."""
        assert self.steps is not None or self.epochs is not None
        if self.epochs is None:
            return self.steps or 0
        steps = -(-self.epochs * prompts // (self.batch_size * self.gradient_accumulation))
        return steps if self.steps is None else min(steps, self.steps)

    def completions(self, sequences: int) -> int:
        """G on a catalogue of so many distinct sequences: no more than these, but for draws, which may repeat one."""
        return self.group_size if self.negatives == "sample" else min(self.group_size, max(2, sequences))

    def at_step(self, step: int) -> GRPOConfig:
        """As it is in step number `step`, from 0: with the anchor of that step. `steps` must be a number."""
        if self.steps is None:
            raise ValueError("grpo.steps: expected the number that steps_on gives, got None")
        return dataclasses.replace(self, tawin=self.tawin.at_step(step, self.steps))

    @property
    def softmax_over(self) -> Normalizer:
        """The normalizer, decided."""
        if self.normalizer != "auto":
            return self.normalizer
        return "trie" if self.negatives == "sample" else "vocab"
