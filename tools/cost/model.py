"""What a training step does, counted from its sizes: FLOPs, bytes and kernel launches, phase by phase.

Three ways of the same step are counted, and the least that any way has to do:

* tawin: this repository. A prompt is run once, packed without padding, what all prompts begin with once for all; each
  distinct prefix of a group once; dead groups are left out where there is no KL; the LM head sees distinct rows of
  trained groups.
* rere: ReRe and MiniOneRec. `generate` on prompts repeated once a beam, then forwards of repeated prompts, all groups,
  full logits at the completions (`logits_to_keep + 1` of theirs).
* shared_prefix: the rollout of rere, then forwards in which a prompt and its completions are one sequence (attention by
  FlexAttention: hidden pairs are skipped), all groups, TRL 1.16's log-prob head on every completion token.

FLOPs are those of matrix products and of attention, 2 a multiplication and addition; norms, rotary embeddings,
activations, softmaxes and the optimizer's arithmetic count as none. Everything a way does within one phase of
`run.phases` stands there: the LM head's backward in `backward`, the logits of rere in its forwards, the beam steps'
LM head in `decode`. Bytes are those of weights, caches, logits and optimizer state, not of activations.

Knows nothing of machines: seconds are predicted by `seconds`, tables printed by `python -m tools.cost.tables`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tawin.run.phases import PHASES

Way = Literal["tawin", "shared_prefix", "rere"]
WAYS: tuple[Way, ...] = get_args(Way)

# Kernels of one decoder layer as transformers runs Qwen2 eagerly, counted from its source; not exact.
KERNELS_A_LAYER = 30
# Bytes of a logit in a step of `generate`: bf16 written, made fp32, log-softmax, a mask made and added, beam scores
# added, top-k.
GENERATE_LOGIT_BYTES = 44
HALF, FULL = 2, 4  # bytes of bf16 and fp32
TRAINING = ("policy_forward", "loss", "backward")  # the phases that a utilisation of training is of


@dataclass(frozen=True)
class ModelShape:
    """A decoder of transformer blocks: grouped-query attention, an MLP of gate, up and down."""

    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    ties_embeddings: bool = True

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Of a transformers text config (Qwen2, Qwen3, Llama, Mistral)."""
        return cls(
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            vocabulary=config.vocab_size,
            ties_embeddings=config.tie_word_embeddings,
        )

    @property
    def key_value_parameters(self) -> int:
        """Of the matrices of one layer that make keys and values."""
        return 2 * self.hidden_size * self.key_value_heads * self.head_dim

    @property
    def mlp_parameters(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def layer_parameters(self) -> int:
        """Of all matrices of one layer."""
        return self.key_value_parameters + 2 * self.hidden_size * self.heads * self.head_dim + self.mlp_parameters

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> int:
        """Of the whole model, with Qwen2's biases and norms."""
        small = 2 * self.hidden_size + (self.heads + 2 * self.key_value_heads) * self.head_dim
        embeddings = self.head_parameters * (1 if self.ties_embeddings else 2)
        return self.layers * (self.layer_parameters + small) + embeddings + self.hidden_size

    @property
    def cache_bytes(self) -> int:
        """Bytes of one token's keys and values in bf16."""
        return 2 * self.layers * self.key_value_heads * self.head_dim * HALF


QWEN2_5 = {
    "Qwen2.5-0.5B": ModelShape(896, 24, 14, 2, 64, 4864, 151_936),
    "Qwen2.5-1.5B": ModelShape(1536, 28, 12, 2, 128, 8960, 151_936),
    "Qwen2.5-7B": ModelShape(3584, 28, 28, 4, 128, 18_944, 152_064, ties_embeddings=False),
}


@dataclass(frozen=True)
class StepShape:
    """One step on one GPU: `prompts` prompts, as many beams as completions, one update. All weights are trained.

    Prompts count with their mean length, so the square of it in the attention is a little low where lengths differ.
    """

    prompts: int = 64
    prompt_tokens: float = 256  # real ones of a prompt, the mean
    group_size: int = 16
    length: int = 4  # tokens of a completion
    live_share: float = 0.15  # of the groups that have a gradient
    prefix_share: float = 0.63  # distinct prefixes run / (group_size * (length - 1))
    has_reference: bool = False  # beta > 0: a reference forward, and all groups are trained on
    padded_tokens: float | None = None  # of a prompt as a padded batch runs it; None: no padding
    common_tokens: float = 0  # that all prompts begin with, an instruction: we run them once for all
    normalizer: Literal["vocab", "trie"] = "vocab"  # ours; the peers know the vocabulary only
    trie_tokens: int = 1024  # that the trie uses
    children: float = 48  # of a beam's node, the mean
    shares_prefill: bool = False  # the policy's forward goes on from the rollout's prompts; needs has_reference
    trains_head: bool = True
    repeated_logits: Literal["completions", "all"] = "completions"  # where rere's forwards make logits

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_tokens", "group_size", "length"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("live_share", "prefix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.padded_tokens is not None and self.padded_tokens < self.prompt_tokens:
            raise ValueError(
                f"padded_tokens: expected at least prompt_tokens {self.prompt_tokens}, got {self.padded_tokens}"
            )
        if not 0 <= self.common_tokens < self.prompt_tokens:
            raise ValueError(
                f"common_tokens: expected less than prompt_tokens {self.prompt_tokens}, got {self.common_tokens}"
            )
        if self.shares_prefill and not self.has_reference:
            raise ValueError("shares_prefill: expected has_reference, without which only live groups are trained on")

    @property
    def padded(self) -> float:
        return self.prompt_tokens if self.padded_tokens is None else self.padded_tokens

    @property
    def suffix(self) -> float:
        """Distinct prefixes of a group that are run, the empty one not among them."""
        return self.prefix_share * self.group_size * (self.length - 1)

    @property
    def repeated_rows(self) -> float:
        """Rows of logits that a forward of rere makes."""
        positions = self.length + 1 if self.repeated_logits == "completions" else self.padded + self.length
        return self.prompts * self.group_size * positions

    @property
    def trained(self) -> float:
        """Groups that the policy's forward sees."""
        return self.prompts * (1.0 if self.has_reference else self.live_share)


@dataclass(frozen=True)
class Forward:
    """FLOPs of a forward: of products with weights, and of attention (scores and values)."""

    products: float = 0.0
    attention: float = 0.0

    @property
    def flops(self) -> float:
        return self.products + self.attention

    def __add__(self, other: Forward) -> Forward:
        return Forward(self.products + other.products, self.attention + other.attention)

    def __rmul__(self, times: float) -> Forward:
        return Forward(times * self.products, times * self.attention)

    def backward(self, *, recomputes: bool) -> float:
        """Twice as much; attention that keeps no scores makes them again, half a forward more."""
        return 2 * self.products + (2.5 if recomputes else 2.0) * self.attention


@dataclass(frozen=True)
class Work:
    """Of one phase. beams: that a processor in Python looks at, one by one."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0
    beams: float = 0.0
    launched_by: Literal["python", "autograd", "graph"] = "python"


def causal_pairs(tokens: float) -> float:
    """Of queries and keys that see each other in one sequence."""
    return tokens * (tokens + 1) / 2


def decoder(model: ModelShape, tokens: float, pairs: float) -> Forward:
    """The blocks on `tokens` tokens whose attention computes `pairs` pairs of a query and a key."""
    return Forward(
        2 * model.layers * model.layer_parameters * tokens, 4 * model.layers * model.heads * model.head_dim * pairs
    )


def decoder_wanted(model: ModelShape, tokens: float, pairs: float, wanted: float) -> Forward:
    """The same with the last layer's MLP at the `wanted` tokens alone."""
    return decoder(model, tokens, pairs) + Forward(-2 * model.mlp_parameters * (tokens - wanted))


def decoder_least(model: ModelShape, tokens: float, pairs: float, wanted: float, wanted_pairs: float) -> Forward:
    """The same where of other than the `wanted` tokens the last layer makes keys and values alone."""
    others = model.layer_parameters - model.key_value_parameters
    skipped = Forward(-2 * others * (tokens - wanted), -4 * model.heads * model.head_dim * (pairs - wanted_pairs))
    return decoder(model, tokens, pairs) + skipped


def step_work(model: ModelShape, step: StepShape, way: Way) -> dict[str, Work]:
    """What a way does in every phase of a step. ValueError: no such way."""
    if way not in WAYS:
        raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {way!r}")
    found = _tawin(model, step) if way == "tawin" else _peer(model, step, way)
    return {phase: found.get(phase, Work()) for phase in PHASES}


def step_flops(model: ModelShape, step: StepShape, way: Way) -> dict[str, float]:
    """FLOPs that a way does, by phase."""
    return {phase: work.flops for phase, work in step_work(model, step, way).items()}


def needed_flops(model: ModelShape, step: StepShape) -> dict[str, float]:
    """The least FLOPs of every phase taken alone, the numerator of a utilisation.

    Each distinct token once, trained groups only, hidden pairs of the attention skipped, nothing computed again in the
    backward pass, the last layer where it is wanted, the LM head at distinct rows and, with the trie normaliser, at
    children alone. That a policy's forward could reuse the decode's activations is not taken off.
    """
    B, P, W, L, S = step.prompts, step.prompt_tokens, step.group_size, step.length, step.suffix
    C = step.common_tokens
    columns = model.vocabulary if step.normalizer == "vocab" else step.children
    logits = 2 * columns * model.hidden_size
    suffix = decoder(model, S, S * (P + L / 2))  # a prefix's depth is L / 2 on average

    def prompts(count: float) -> Forward:
        once = min(1.0, count)
        pairs = count * (causal_pairs(P) - causal_pairs(C)) + once * causal_pairs(C)
        return decoder_least(model, count * (P - C) + once * C, pairs, count, count * P)

    trained = prompts(step.trained) + step.trained * suffix
    policy = step.trained * suffix if step.shares_prefill else trained
    decoded = decoder(model, W * (L - 1), W * (L - 1) * (P + L / 2))
    rows = step.trained * (1 + S)
    return {
        **dict.fromkeys(PHASES, 0.0),
        "prefill": prompts(B).flops,
        "decode": B * (decoded.flops + (1 + W * (L - 1)) * logits),
        "reference": (prompts(B) + B * suffix).flops + B * (1 + S) * logits if step.has_reference else 0.0,
        "policy_forward": policy.flops,
        "loss": rows * logits,
        "backward": trained.backward(recomputes=False) + rows * logits * (2 if step.trains_head else 1),
    }


def _tawin(model: ModelShape, step: StepShape) -> dict[str, Work]:
    B, W, L, S, padded = step.prompts, step.group_size, step.length, step.suffix, step.padded
    V, H, U, N = model.vocabulary, model.hidden_size, step.trie_tokens, model.parameters
    is_vocab = step.normalizer == "vocab"
    suffix = decoder(model, S, S * (padded + S))
    # Under a dense mask sdpa computes what it hides, too. Prompt and suffix are one sequence, or the suffix goes on.
    prompts = decoder_wanted(model, *_prompt_run(step, B, 0), B)
    trained = decoder_wanted(model, *_prompt_run(step, step.trained, S), step.trained * (1 + S))
    policy = trained
    if step.shares_prefill:
        trained, policy = prompts + step.trained * suffix, step.trained * suffix
    reference = decoder_wanted(model, *_prompt_run(step, B, S), B * (1 + S))

    appended = W * L * (L - 1) / 2  # keys that the steps' beams find appended, summed up
    decoded = decoder(model, W * (L - 1), W * ((L - 1) * padded + appended))
    # The trie's kernel takes every completion token; the vocabulary's every distinct state.
    rows, logits = (1 + S, 2 * V * H) if is_vocab else (W * L, 2 * U * H)
    step_rows = 1 + W * (L - 1)
    step_head = step_rows * (2 * (V + U) * H if is_vocab else 2 * U * H)
    head_bytes = HALF * H * (V if is_vocab else U)
    cast = (FULL + HALF) * N  # autocast's bf16 copies, once an autocast region or graph
    decode_bytes: float = (L - 1) * HALF * model.layers * model.layer_parameters + L * head_bytes
    decode_bytes += B * ((L - 1) * padded + appended) * model.cache_bytes
    layers = model.layers * KERNELS_A_LAYER
    is_run = step.trained > 0
    return {
        "prefill": Work(prompts.flops, cast + HALF * N, layers),
        "decode": Work(
            B * (decoded.flops + step_head),
            cast + decode_bytes,
            (L - 1) * layers + 8 * L,
            launched_by="graph",
        ),
        "reward": Work(launches=20),
        "reference": Work(reference.flops + B * rows * logits, cast + HALF * N, layers)
        if step.has_reference
        else Work(),
        "policy_forward": Work(policy.flops, cast + HALF * N, layers) if is_run else Work(),
        "loss": Work(step.trained * rows * logits, head_bytes, 20) if is_run else Work(),
        "backward": _backward(
            model,
            trained.backward(recomputes=True),
            step.trained * rows * logits * (3 if step.trains_head else 2),  # logits again, dHidden, dWeight
            0.0,
        )
        if is_run
        else Work(),
        "optimizer": _optimizer(model),
    }


def _prompt_run(step: StepShape, groups: float, suffix: float) -> tuple[float, float]:
    """Tokens and pairs of so many prompts with `suffix` tokens behind each."""
    padded, C = step.padded, step.common_tokens
    once = min(1.0, groups)
    tokens = groups * (step.prompt_tokens - C + suffix) + once * C
    if C == 0 and suffix == 0:
        return tokens, groups * causal_pairs(padded)
    return tokens, groups * (padded - C + suffix) * (padded + suffix) + once * causal_pairs(C)


def _peer(model: ModelShape, step: StepShape, way: Way) -> dict[str, Work]:
    B, G, L, padded = step.prompts, step.group_size, step.length, step.padded
    V, N = model.vocabulary, model.parameters
    is_padded = padded > step.prompt_tokens  # transformers hands a mask over then, and sdpa computes what it hides
    layers = model.layers * KERNELS_A_LAYER
    logits = 2 * model.head_parameters
    weights = (FULL + 2 * HALF) * N

    prompts = decoder(model, padded, padded**2 if is_padded else causal_pairs(padded))
    decoded = decoder(model, L - 1, (L - 1) * (padded + L / 2))
    cache = ((L - 1) * (padded + L / 2)) * model.cache_bytes * 3  # read, and read and written by the reordering
    decode_bytes = (L - 1) * HALF * model.layers * model.layer_parameters + L * HALF * model.head_parameters
    found = {
        "prefill": Work(B * G * prompts.flops, weights, layers),
        "decode": Work(
            B * G * (decoded.flops + L * logits),
            decode_bytes + B * G * (cache + L * V * GENERATE_LOGIT_BYTES),
            (L - 1) * layers + 40 * L,
            beams=B * G * L,
        ),
        "reward": Work(launches=20),
        "optimizer": _optimizer(model),
    }
    if way == "rere":
        length = padded + L
        pairs = length**2 if is_padded else causal_pairs(length)
        forward = decoder(model, G * length, G * pairs)
        rows = step.repeated_rows
        run = Work(B * forward.flops + rows * logits, weights + 3 * HALF * rows * V, layers)
        found["policy_forward"], found["loss"] = run, Work(launches=20)
        head = rows * logits * (2 if step.trains_head else 1)
        logit_bytes = 3 * HALF * rows * V
    else:
        pairs = causal_pairs(padded) + G * (L * padded + causal_pairs(L))
        forward = decoder(model, padded + G * L, pairs)
        rows = B * G * L
        body = Work(B * forward.flops, weights, layers)
        found["policy_forward"], found["loss"] = body, Work(rows * logits, HALF * rows * V, 40)
        run = replace(body, flops=body.flops + rows * logits)
        head = rows * logits * (3 if step.trains_head else 2)
        logit_bytes = 2 * HALF * rows * V
    if step.has_reference:
        found["reference"] = run
    found["backward"] = _backward(model, B * forward.backward(recomputes=True), head, logit_bytes)
    return found


def _backward(model: ModelShape, blocks: float, head: float, logit_bytes: float) -> Work:
    """Weights are read in bf16; gradients are written in bf16, read, and written in fp32."""
    moved = (3 * HALF + FULL) * model.parameters + logit_bytes
    return Work(blocks + head, moved, 2 * model.layers * KERNELS_A_LAYER, launched_by="autograd")


def _optimizer(model: ModelShape) -> Work:
    """Fused AdamW in fp32: gradients read for their norm, read and written to be clipped, read again; parameters and
    two moments read and written."""
    return Work(bytes=(4 + 6) * FULL * model.parameters, launches=50)
