"""Every option of the main job, as frozen dataclasses: the field names are the command line and the YAML.

A run's config is the preset (presets.py), then the YAML file (config_files.py), then the command line; the later one
wins. This module knows nothing of data or models: it only checks that values make sense by themselves.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin, get_type_hints

from tawin_kernels import TAWin

KS = (1, 3, 5, 10)  # the cut-offs that every evaluation reports


def _require(condition: bool, field_name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{field_name}: expected {expected}, got {value!r}")


def _require_type(field_name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{field_name}: expected {kind.__name__}, got {value!r}")


def _require_choices(config: object, section: str) -> None:
    """Every field that is annotated as a Literal holds one of its values."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            _require(getattr(config, name) in choices, f"{section}.{name}", f"one of {choices}", getattr(config, name))


@dataclass(frozen=True)
class SplitConfig:
    """Which interactions are trained on, and by which stage."""

    method: Literal["leave_one_out", "time"] = "leave_one_out"
    """leave_one_out: each user's last item is for test, the one before for valid. time: what is before a point in time
    is for training, a user's first interaction after it for valid, the first after a second point for test; the data
    needs times, and users who did nothing in a period are no example of it."""
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

    def __post_init__(self) -> None:
        _require_type("split.rl_targets", self.rl_targets, int)
        _require(self.rl_targets >= 1, "split.rl_targets", "at least 1", self.rl_targets)
        _require(self.max_history >= 1, "split.max_history", "at least 1", self.max_history)
        _require(0.0 <= self.rl_share <= 1.0, "split.rl_share", "a share in [0, 1]", self.rl_share)
        for name in ("valid_share", "test_share"):
            _require(0.0 < getattr(self, name) < 1.0, f"split.{name}", "a share in (0, 1)", getattr(self, name))
        sum_of_shares = self.valid_share + self.test_share
        _require(sum_of_shares < 1.0, "split.valid_share", "a sum with split.test_share below 1", sum_of_shares)
        _require_choices(self, "split")


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
        _require(self.num_users >= 1, "synthetic.num_users", "at least 1", self.num_users)
        _require(2 <= self.num_clusters <= self.num_items, "synthetic.num_clusters", "2..num_items", self.num_clusters)
        _require(3 <= self.min_length <= self.max_length, "synthetic.min_length", "3..max_length", self.min_length)


@dataclass(frozen=True)
class CatalogConfig:
    """How an item becomes tokens."""

    item_tokens: Literal["semantic_id", "title"] = "semantic_id"
    """New tokens, one range a level; or the tokenizer's own tokens of the title and an end token."""
    separate_shared_ids: bool = True
    """Items that share a semantic id are told apart by an extra last token."""
    levels: int = 3
    """Levels of semantic ids that are built here (ignored where the data has ids)."""
    codes: int = 256
    """Codes a level of semantic ids that are built here (fewer where the catalogue is small)."""
    vectors: str | None = None
    """A .npy of item vectors [items, dimensions] to build ids from; None: from co-occurrence in the training data."""
    title_vocabulary: int = 2048
    """Tokens of the tokenizer trained on the titles (title mode without --model)."""
    instruction: str = ""
    """Text before every history, where `prompt` has none; needs a --model with a tokenizer of its own, or title
    mode."""

    def __post_init__(self) -> None:
        for name in ("levels", "codes", "title_vocabulary"):
            _require_type(f"catalog.{name}", getattr(self, name), int)
        _require_type("catalog.separate_shared_ids", self.separate_shared_ids, bool)
        _require_choices(self, "catalog")
        _require(1 <= self.levels <= 8, "catalog.levels", "1..8", self.levels)
        _require(2 <= self.codes <= 65536, "catalog.codes", "2..65536", self.codes)
        _require(self.title_vocabulary >= 300, "catalog.title_vocabulary", "at least 300", self.title_vocabulary)


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

    def __post_init__(self) -> None:
        _require_choices(self, "prompt")
        _require_type("prompt.chat", self.chat, bool)
        for name, slot in (("template", "{history}"), ("item", "{item}")):
            text = getattr(self, name)
            _require(text is None or text.count(slot) == 1, f"prompt.{name}", f"text with {slot} once", text)
        _require(self.chat or not self.system, "prompt.system", "'' without prompt.chat", self.system)

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands around the items."""
        return self == PromptConfig()


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
    """0: train all weights."""
    lora_alpha: float = 32.0
    """An adapter adds lora_alpha / lora_rank times its product."""
    checkpoint_activations: bool = False
    """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, a third more
    FLOPs."""

    def __post_init__(self) -> None:
        _require(self.hidden_size >= 1, "policy.hidden_size", "at least 1", self.hidden_size)
        _require(self.layers >= 1, "policy.layers", "at least 1", self.layers)
        _require(
            self.heads >= 1 and self.hidden_size % (2 * self.heads) == 0,
            "policy.heads",
            f"a number such that hidden_size {self.hidden_size} splits into heads of even size",
            self.heads,
        )
        _require(self.intermediate_size >= 1, "policy.intermediate_size", "at least 1", self.intermediate_size)
        for name in ("attention_dropout", "hidden_dropout"):
            _require(0.0 <= getattr(self, name) < 1.0, f"policy.{name}", "in [0, 1)", getattr(self, name))
        _require_choices(self, "policy")
        _require(self.lora_rank >= 0, "policy.lora_rank", "0 or more", self.lora_rank)


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
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down to 0 along a cosine, or not at all."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW with fp32 moments, or with moments of 8 bits from bitsandbytes (paged: they may leave the GPU)."""

    _section = "optimizer"

    def __post_init__(self) -> None:
        name = self._section
        _require(self.learning_rate > 0, f"{name}.learning_rate", "above 0", self.learning_rate)
        _require(self.batch_size >= 1, f"{name}.batch_size", "at least 1", self.batch_size)
        _require(
            self.gradient_accumulation >= 1, f"{name}.gradient_accumulation", "at least 1", self.gradient_accumulation
        )
        _require(self.weight_decay >= 0, f"{name}.weight_decay", "0 or more", self.weight_decay)
        _require(self.max_grad_norm > 0, f"{name}.max_grad_norm", "above 0", self.max_grad_norm)
        _require_choices(self, name)
        _require(0.0 <= self.warmup_share <= 1.0, f"{name}.warmup_share", "in [0, 1]", self.warmup_share)


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

    _section = "sft"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epochs >= 0, "sft.epochs", "0 or more", self.epochs)
        _require(self.max_steps is None or self.max_steps >= 1, "sft.max_steps", "at least 1, or None", self.max_steps)
        _require(self.patience >= 1, "sft.patience", "at least 1", self.patience)
        _require(self.evaluate_every >= 1, "sft.evaluate_every", "at least 1", self.evaluate_every)


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
    rank_transform: Literal["identity", "log2", "fraction"] = "identity"
    """What distances are measured in: the rank, log2(1 + rank), or rank / number of negatives."""
    anchor_start: float | None = None
    """The anchor of the first step, from which it goes to `anchor` in equal steps; None: `anchor` from the start."""
    anchor_steps_share: float = 1.0
    """Share of grpo.steps after which a moving anchor has come to `anchor`, where it stays."""

    def __post_init__(self) -> None:
        try:
            self.kernel_options()
        except (ValueError, TypeError) as error:
            raise ValueError(f"grpo.tawin: {error}") from None
        start, share = self.anchor_start, self.anchor_steps_share
        is_rank = start is None or 0.0 <= start < math.inf
        _require(is_rank, "grpo.tawin.anchor_start", "0 or more and finite, or None", start)
        _require(0.0 < share <= 1.0, "grpo.tawin.anchor_steps_share", "a share in (0, 1]", share)

    @property
    def moves(self) -> bool:
        """Whether the anchor of a step depends on its number."""
        return self.enabled and self.anchor_start is not None

    def at_step(self, step: int, steps: int) -> TAWinConfig:
        """As it is in step number `step`, from 0, of `steps`: with the anchor of that step, which does not move.

        Step 0 has anchor_start and the last of the first anchor_steps_share of them, rounded to whole steps, has
        `anchor`, as have all after it; where that is a single step, it has `anchor`.
        """
        if self.anchor_start is None:
            return self
        last = round(self.anchor_steps_share * steps) - 1
        anchor = self.anchor
        if step < last:
            anchor = self.anchor_start + (self.anchor - self.anchor_start) * step / last
        return dataclasses.replace(self, anchor=anchor, anchor_start=None)

    def kernel_options(self) -> TAWin:
        """The same as the kernels take it, checked there; of an anchor that moves, where it comes to."""
        return TAWin(self.anchor, self.window, self.temperature, self.rank_transform)


@dataclass(frozen=True)
class GRPOConfig(OptimizerConfig):
    """Reinforcement learning: G completions a prompt, reward 1 for a target item."""

    learning_rate: float = 1e-4
    batch_size: int = 64
    steps: int | None = 100
    """Rollouts, at most; 0: no RL; None: as many as `epochs` take."""
    epochs: int | None = None
    """Passes over the RL prompts, at most; None: as many as `steps` take."""
    updates: int = 1
    """Optimizer updates on each step's rollout, at the step's learning rate (TRL's num_iterations)."""
    group_size: int = 16
    """G, completions a prompt; with beam negatives the width of the search too."""
    negatives: Literal["beam", "random", "sample"] = "beam"
    """Where the completions come from: constrained beam search, uniform over the catalogue, sampled from the policy."""
    normalizer: Literal["auto", "vocab", "trie"] = "auto"
    """What every log p is a softmax over, rollout, policy and reference alike: the whole vocabulary, or the tokens that
    can follow in the catalogue. auto: trie with negatives 'sample', which draws from it, else vocab."""
    ensure_positive: bool = False
    """Put the target into the group, in place of the last completion, where it is missing. Of several targets: the
    first one that is missing, unless the last completion is a target itself."""
    reward: Literal["binary", "ranking"] = "binary"
    """What a completion gets that is no target. binary: 0. ranking, as ReRe has it: a penalty that falls with its rank,
    -1 / log2(rank + 2), divided by the sum of that over the group; 0 in a group without a target."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo"] = "grpo"
    """As in TRL; cispo takes epsilon_high as the largest ratio itself (5 is customary)."""
    importance_level: Literal["token", "sequence"] = "token"
    """A ratio a token, or one a completion."""
    epsilon_low: float = 0.2
    """Clip range of the ratio. With one update a rollout the ratio is 1: nothing is clipped, and gspo is grpo."""
    epsilon_high: float = 0.2
    """Its upper end, 1 + epsilon_high."""
    beta: float = 0.0
    """Weight of the KL to the reference model; 0 keeps no reference model and skips groups without gradient."""
    normalize_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""
    evaluate_every: int = 20
    """Steps between evaluations on valid; the best checkpoint is kept, the SFT start included."""
    tawin: TAWinConfig = field(default_factory=TAWinConfig)

    _section = "grpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.steps is not None or self.epochs is not None
        _require(ends, "grpo.steps", "a number where grpo.epochs is None", self.steps)
        _require(self.steps is None or self.steps >= 0, "grpo.steps", "0 or more, or None", self.steps)
        _require(self.epochs is None or self.epochs >= 1, "grpo.epochs", "at least 1, or None", self.epochs)
        _require(self.updates >= 1, "grpo.updates", "at least 1", self.updates)
        _require(2 <= self.group_size <= 512, "grpo.group_size", "2..512", self.group_size)
        _require(0 <= self.epsilon_low < 1, "grpo.epsilon_low", "in [0, 1)", self.epsilon_low)
        _require(self.epsilon_high >= 0, "grpo.epsilon_high", "0 or more", self.epsilon_high)
        _require(self.beta >= 0, "grpo.beta", "0 or more", self.beta)
        _require(self.evaluate_every >= 1, "grpo.evaluate_every", "at least 1", self.evaluate_every)
        _require(
            self.negatives != "random" or self.ensure_positive,
            "grpo.ensure_positive",
            "True with grpo.negatives 'random' (a random group almost never holds the target)",
            self.ensure_positive,
        )
        _require(
            self.loss_type != "cispo" or self.epsilon_high >= 1,
            "grpo.epsilon_high",
            "at least 1 with grpo.loss_type 'cispo' (it is the largest ratio itself)",
            self.epsilon_high,
        )
        _require(
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

    def at_step(self, step: int) -> GRPOConfig:
        """As it is in step number `step`, from 0: with the anchor of that step. `steps` must be a number."""
        if self.steps is None:
            raise ValueError("grpo.steps: expected the number that steps_on gives, got None")
        return dataclasses.replace(self, tawin=self.tawin.at_step(step, self.steps))

    @property
    def softmax_over(self) -> Literal["vocab", "trie"]:
        """The normalizer, decided."""
        if self.normalizer != "auto":
            return self.normalizer
        return "trie" if self.negatives == "sample" else "vocab"


@dataclass(frozen=True)
class EvaluationConfig:
    """Constrained beam search over the whole catalogue."""

    beam_width: int = 50
    """W, beams of the search; a target that is not among the W best items counts as not found."""
    batch_size: int = 64
    """Prompts of one search."""
    valid_users: int | None = 1000
    """Users that are evaluated on valid while training (sampled once); None: all."""
    test_users: int | None = None
    """Users of the final evaluations of valid and test; None: all. results.json says how many."""
    normalizer: Literal["vocab", "trie"] = "vocab"
    """What the search's log p is a softmax over, as in grpo.normalizer."""
    exclude_history: bool = False
    """Never recommend an item of the prompt's history again."""
    select: Literal["recall@1", "recall@3", "recall@5", "recall@10", "ndcg@3", "ndcg@5", "ndcg@10"] = "recall@3"
    """The valid metric by which checkpoints are chosen."""

    def __post_init__(self) -> None:
        _require(self.beam_width >= max(KS), "evaluation.beam_width", f"at least {max(KS)}", self.beam_width)
        _require(self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        for name in ("valid_users", "test_users"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"evaluation.{name}", "at least 1, or None", value)
        _require_choices(self, "evaluation")


@dataclass(frozen=True)
class GuardConfig:
    """What is done where a loss, reward, score or gradient is not finite (`tawin.guards`)."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """stop: the run ends with a report. skip: the step updates nothing, is counted and logged, and the next one begins.
    Weights that are not finite stop the run either way."""
    max_skips: int = 10
    """Steps in a row that may be skipped; one more stops the run."""

    def __post_init__(self) -> None:
        _require_choices(self, "guards")
        _require_type("guards.max_skips", self.max_skips, int)
        _require(self.max_skips >= 1, "guards.max_skips", "at least 1", self.max_skips)


@dataclass(frozen=True)
class WatchdogConfig:
    """When RL is taken to have gone wrong: hits that collapse, a KL that explodes (`tawin.watchdog`)."""

    action: Literal["warn", "stop", "off"] = "warn"
    """warn: a message and a line in metrics.jsonl, once until it is over. stop: these, and the run ends."""
    window: int = 20
    """Steps over which hits are summed up."""
    hit_share: float = 0.2
    """Hits of a window below this share of the best window's are a collapse,"""
    patience: int = 10
    """if they stay there for so many steps."""
    max_kl: float = 10.0
    """KL to the reference, nats a token, that is an explosion where three steps in a row are above it."""

    def __post_init__(self) -> None:
        _require_choices(self, "watchdog")
        for name in ("window", "patience"):
            _require_type(f"watchdog.{name}", getattr(self, name), int)
            _require(getattr(self, name) >= 1, f"watchdog.{name}", "at least 1", getattr(self, name))
        _require(0.0 < self.hit_share < 1.0, "watchdog.hit_share", "a share in (0, 1)", self.hit_share)
        _require(0.0 < self.max_kl < math.inf, "watchdog.max_kl", "above 0 and finite", self.max_kl)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the numbers of a run are shown as well; metrics.jsonl and results.json have them in any case."""

    to: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """TensorBoard's event files go into the run folder. No part of the experiment: it may differ on --resume."""
    project: str = "tawin"
    """The project of Weights & Biases or Trackio."""

    def __post_init__(self) -> None:
        _require_choices(self, "tracking")
        # Trackio makes a file of it.
        is_name = re.fullmatch(r"\w[\w .-]*", self.project) is not None
        _require(is_name, "tracking.project", "a name of letters, digits, spaces and _ . -, no path", self.project)


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state that --resume goes on from is written, beside each evaluation, and how many are kept.

    The best model of each stage is kept whatever is said here.
    """

    keep: int = 2
    """Newest states that are kept; a second one stands in where the first is damaged."""
    save_every: int | None = None
    """Optimizer steps between saves; None: at evaluations alone."""
    save_minutes: float | None = None
    """Minutes of training after which a save is due once a step has ended; None: at evaluations alone."""

    def __post_init__(self) -> None:
        _require_type("checkpoints.keep", self.keep, int)
        _require(self.keep >= 1, "checkpoints.keep", "at least 1", self.keep)
        if self.save_every is not None:
            _require_type("checkpoints.save_every", self.save_every, int)
            _require(self.save_every >= 1, "checkpoints.save_every", "at least 1, or None", self.save_every)
        minutes, expected = self.save_minutes, "above 0 and finite, or None"
        _require(minutes is None or 0 < minutes < math.inf, "checkpoints.save_minutes", expected, minutes)


@dataclass(frozen=True)
class Config:
    """Train a generative recommender: SFT, then GRPO with TAWin."""

    data: str | None = None
    """Folder with interactions.parquet and items.parquet; None: a synthetic catalogue."""
    data_cache: str | None = None
    """Folder for the memory-mapped form of the data; None: data is held in memory."""
    model: str | None = None
    """Folder or hub name of a causal LM with its tokenizer; None: a small Qwen2 from scratch."""
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    """Of supervised fine-tuning's forward; all others have masks that sdpa alone takes. flash_attention_2 needs
    flash-attn and a GPU."""
    seed: int = 0
    """Of everything drawn at random: data, weights, batches, dropout, samples."""
    deterministic: bool = False
    """Only kernels that give the same bits every time, on a GPU too (slower there; an error where there is none)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        choices = ("sdpa", "flash_attention_2")
        _require(self.attention in choices, "attention", f"one of {choices}", self.attention)
        _require_type("seed", self.seed, int)
        _require_type("deterministic", self.deterministic, bool)
        _require(0 <= self.seed < 2**31, "seed", "0 or more, below 2 ** 31", self.seed)
        _require(
            self.prompt.is_plain or not self.catalog.instruction,
            "catalog.instruction",
            "'' where options of `prompt` are given (write it into prompt.template)",
            self.catalog.instruction,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the KL term takes a model of its own: adapters can be switched off for it."""
        return self.grpo.beta > 0 and self.policy.lora_rank == 0
