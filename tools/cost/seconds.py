"""How long a step would take and how much memory it would need, on one GPU and on many: predictions by arithmetic.

One GPU, phase by phase: max(FLOPs / rate, bytes / bandwidth) + launches. The rate is a share of what a good matrix
product reaches, one share for everything: an assumption (`Machine.efficiency`), as all constants here are, to be
replaced by what was measured. `traffic_efficiency` says what share the activations between the products leave.

Many GPUs do the same step each, with prompts of their own. Three things are added:
* DDP: a ring all-reduce of fp32 gradients, 2 (n - 1) / n of their bytes through each GPU, hidden behind the backward
  pass but for the last bucket: the embedding's gradient, with a tied head all of it, is complete only at the very end.
* FSDP2: bf16 parameters gathered for the rollout (and kept until its end), the reference, the forward and the backward
  pass, fp32 gradients reduced and scattered; each hidden behind its phase but for one layer. Of the optimizer a rank
  has its share.
* Without KL only live groups are trained on. Their number differs from rank to rank, and all wait for the rank with
  the most: the expected maximum of n binomials.

Knows nothing of what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from bench.cases.floors import BYTES_PER_SECOND, FLOPS_PER_SECOND, LAUNCH_SECONDS

from .model import FULL, HALF, ModelShape, StepShape, Way, Work, step_work

Strategy = Literal["ddp", "fsdp2"]

TRL_TILE_BYTES = 268e6  # of TRL 1.16's head: 4,096 tokens x 32,768 words


@dataclass(frozen=True)
class Machine:
    """A GPU: what work is assumed to reach on it."""

    name: str = "H200"
    flops_per_second: float = FLOPS_PER_SECOND  # of a good bf16 matrix product
    efficiency: float = 0.5  # of that, of a whole phase: thin products and all that is between them
    bytes_per_second: float = BYTES_PER_SECOND
    launch_seconds: float = LAUNCH_SECONDS  # a kernel, on the device
    python_seconds: float = 15e-6  # a kernel, on the host: 0.45 ms a layer of transformers' eager forward
    autograd_seconds: float = 5e-6  # the same by autograd's engine, which runs no Python
    beam_seconds: float = 30e-6  # a beam in Python: one wait for the device, a look-up, an indexed assignment
    memory: float = 141e9
    peak_flops_per_second: float = 989e12  # dense bf16 by the data sheet: what a utilisation is a share of


H200 = Machine()


@dataclass(frozen=True)
class Cluster:
    """GPUs behind a switch in each machine, machines joined by a card a GPU. Bytes a second a direction."""

    gpus: int
    gpus_a_node: int = 8
    switch: float = 450e9  # of each GPU
    network: float = 50e9  # of each GPU: 400 Gb/s
    achieved: float = 0.8  # of both
    latency: float = 30e-6  # of one collective

    @property
    def bytes_per_second(self) -> float:
        """Of a ring collective. Between machines a ring a card runs: all cards of a machine share the bytes."""
        nodes = math.ceil(self.gpus / self.gpus_a_node)
        slowest = self.switch if nodes == 1 else min(self.switch, self.gpus_a_node * self.network)
        return self.achieved * slowest

    def pass_seconds(self, moved: float) -> float:
        """Of a gather or a reduce-scatter of `moved` bytes; an all-reduce is two."""
        return moved * (self.gpus - 1) / self.gpus / self.bytes_per_second


def seconds_of(work: Work, machine: Machine) -> float:
    """Predicted. The host launches ahead of the device, so it counts where it takes longer than the device."""
    rate = machine.efficiency * machine.flops_per_second
    device = max(work.flops / rate, work.bytes / machine.bytes_per_second) + work.launches * machine.launch_seconds
    host = {"python": machine.python_seconds, "autograd": machine.autograd_seconds, "graph": 0.0}[work.launched_by]
    return max(device, work.launches * host) + work.beams * machine.beam_seconds


def step_seconds(model: ModelShape, step: StepShape, machine: Machine = H200, way: Way = "tawin") -> dict[str, float]:
    """Predicted seconds by phase on one GPU, whether or not it has the memory."""
    return {phase: seconds_of(work, machine) for phase, work in step_work(model, step, way).items()}


def step_memory(model: ModelShape, step: StepShape, way: Way = "tawin") -> dict[str, float]:
    """Predicted bytes when the backward pass begins; one micro-batch, no activation checkpointing.

    weights: fp32 parameters and gradients, two moments, bf16 copies, the reference in fp32. activations: what
    transformers' eager Qwen2 keeps under autocast, 28 H + 8 I bytes a token and layer, counted from its source, so
    roughly. logits: of rere with their gradient and log-softmax in bf16; a tile of TRL's head.
    """
    B, G, L = step.prompts, step.group_size, step.length
    own = step.prompt_tokens - step.common_tokens + step.suffix
    tokens, logits = step.trained * own + min(1.0, step.trained) * step.common_tokens, 0.0
    if way == "shared_prefix":
        tokens, logits = B * (step.padded + G * L), TRL_TILE_BYTES
    elif way == "rere":
        tokens = B * G * (step.padded + L)
        logits = 3.0 * HALF * step.repeated_rows * model.vocabulary
    kept = 28 * model.hidden_size + 8 * model.intermediate_size
    copies = 4 * FULL + HALF + (FULL if step.has_reference else 0)
    return {
        "weights": float(copies * model.parameters),
        "activations": tokens * model.layers * kept,
        "logits": logits,
    }


def traffic_efficiency(model: ModelShape, machine: Machine = H200, *, is_fused: bool = False) -> float:
    """The share of the matrix rate that is left where products run at it and their inputs and outputs pass memory.

    Bytes a token and layer of a forward, counted from transformers' Qwen2 under autocast: 173 H + 16 I run eagerly
    (norms and rotary embeddings in fp32, every cast a pass), 63 H + 12 I with everything between products fused.
    """
    eager, fused = (173, 16), (63, 12)
    states, inner = fused if is_fused else eager
    traffic = (states * model.hidden_size + inner * model.intermediate_size) / machine.bytes_per_second
    products = 2 * model.layer_parameters / machine.flops_per_second
    return products / (products + traffic)


def expected_maximum(trials: int, share: float, ranks: int) -> float:
    """Of `ranks` independent binomials: the live groups of the rank that has the most."""
    below = expected = 0.0
    for successes in range(trials):
        below += math.comb(trials, successes) * share**successes * (1 - share) ** (trials - successes)
        expected += 1 - min(1.0, below) ** ranks
    return expected


def cluster_seconds(
    model: ModelShape,
    step: StepShape,
    cluster: Cluster,
    strategy: Strategy,
    machine: Machine = H200,
    *,
    is_balanced: bool = False,
) -> dict[str, float]:
    """Predicted seconds of our step on every GPU of a cluster: of the phases, "waiting" and "communication".

    The phases are those of a rank with the average number of live groups; waiting is what the one with the most takes
    longer. is_balanced: ranks hand live groups to each other after the rollout; half a group is left by rounding.
    """
    seconds = step_seconds(model, step, machine)
    slowest = seconds
    if not step.has_reference and cluster.gpus > 1:
        live = step.live_share * step.prompts
        most = live + 0.5 if is_balanced else expected_maximum(step.prompts, step.live_share, cluster.gpus)
        slowest = step_seconds(model, replace(step, live_share=min(1.0, most / step.prompts)), machine)
    waiting = sum(slowest.values()) - sum(seconds.values())

    if strategy == "ddp":
        passes = 2 * cluster.pass_seconds(FULL * model.parameters)
        last = 2 * cluster.pass_seconds(FULL * model.head_parameters)
        exposed = max(passes - slowest["backward"], last) + cluster.latency
    else:
        gather = cluster.pass_seconds(HALF * model.parameters)
        reduce = cluster.pass_seconds(FULL * model.parameters)
        first = (gather / model.layers) + cluster.latency
        hidden = {"prefill": gather, "policy_forward": gather, "backward": gather + reduce}
        if step.has_reference:
            hidden["reference"] = gather
        exposed = sum(max(moved - slowest[phase], first) for phase, moved in hidden.items())
        share = replace(machine, bytes_per_second=machine.bytes_per_second * cluster.gpus)
        seconds = {**seconds, "optimizer": step_seconds(model, step, share)["optimizer"]}
    return {**seconds, "waiting": waiting, "communication": exposed if cluster.gpus > 1 else 0.0}
