"""Training on several processes: the engine that a model is run by, and what the processes tell each other.

The engine is accelerate's: one process, DDP, or FSDP2, on one machine or many, as torchrun or `accelerate launch` say.
Every process runs the same code on its share of a batch, and the share is the only thing that depends on their number.
The first process alone writes files; the others read them, so the run folder lies where all of them see it.

Here a decoder and its LM head are called apart, past the model's own forward, where an engine's hooks would sit. So
what the engine wraps is a module around the whole model, whose forward does any work that it is given (`EngineModule`).

Knows nothing of items, prompts or losses.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

# While the first process builds a catalogue, the others wait in a collective. A process that dies is no reason for a
# short limit: torchrun ends the others at once.
_PATIENCE = timedelta(hours=2)
_LAST_WORDS = 10.0  # seconds that the first process has to say why all end


def make_accelerator() -> Accelerator:
    """As many processes as were started, bf16 autocast on CUDA, fp32 on the CPU. Never MPS: reference ops need fp64.

    Raises:
        ValueError: for an engine that is neither DDP nor FSDP2, or an option of it that would train wrongly.
    """
    cuda = torch.cuda.is_available()
    # Every process reads the model itself: what is loaded to be evaluated or to be a reference is needed by all.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    plugin = _fsdp_plugin()
    accelerator = Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if cuda else "no",
        fsdp_plugin=plugin,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate takes FSDP for a matter of accelerators. torch shards on the CPU as well, and so it is tested.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    if plugin is not None and plugin.mixed_precision_policy is not None:
        # Losses leave the engine in fp32, gradients are summed in it.
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32
        )
    engines = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)
    if accelerator.distributed_type not in engines:
        raise ValueError(f"expected DDP or FSDP2 as the engine, got {accelerator.distributed_type.value}")
    parallelism = accelerator.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ValueError(f"expected processes that each have data of their own, got {parallelism}")
    return accelerator


def _fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch --use_fsdp` asked for."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"expected FSDP2 (accelerate launch --fsdp_version 2), got FSDP{plugin.fsdp_version}")
    if plugin.activation_checkpointing:  # it would run layers again without the attention that they first ran with
        raise ValueError("expected no --fsdp_activation_checkpointing: use --policy.checkpoint-activations")
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP":  # it would part what is used together
        raise ValueError("expected --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP or NO_WRAP, got SIZE_BASED_WRAP")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ValueError("expected no --fsdp_offload_params: training with weights off the GPU was never seen to work")
    return plugin


class Sum(NamedTuple):
    """A figure of a step as one process sees it: its total, and how many things that is of."""

    total: float | Tensor
    things: float | Tensor | None = None
    """None: the total itself is the figure."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """This process's part of `size` things; the parts differ by one at most."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """The tensor's sum over the processes, in its place; the same on all of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sums(self, *values: float | Tensor) -> list[float]:
        """The sum of each number over the processes: one collective, in fp64."""
        numbers = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values]
        return self.sum(torch.stack(numbers)).tolist()

    def figures(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Each figure over all processes, by its name: total / things, 0 where there are none. One collective."""
        numbers = self.sums(*(0.0 if one is None else one for pair in sums.values() for one in pair))
        found = {}
        for place, (name, pair) in enumerate(sums.items()):
            total, count = numbers[2 * place : 2 * place + 2]
            found[name] = total if pair.things is None else total / count if count else 0.0
        return found

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks. Tensors in it lie on the CPU."""
        return gather_object([value])

    def wait(self) -> None:
        """Until all are here: what the first one wrote before can be read after."""
        self.sums(0.0)

    def ask_first(self, function: Callable[[], T]) -> T:
        """What `function` gives on the first process, on all of them.

        Where it fails, the first process raises and the others end: one message, however many processes.
        """
        if self.count == 1:
            return function()
        answer: list[Any] = [1, False]  # an exit status, where there is no answer
        try:
            if self.is_first:
                answer = [function(), True]
        except SystemExit as ended:
            answer[0] = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            raise
        finally:
            dist.broadcast_object_list(answer, src=0, device=self.device)
        if not answer[1]:
            if answer[0]:  # torchrun ends the others as soon as one failed: the first must have had the time to say why
                time.sleep(_LAST_WORDS)
            sys.exit(answer[0])
        return answer[0]

    def end(self, message: str) -> NoReturn:
        """End all processes with exit status 1 and one message. All of them call it, for the same reason."""
        if self.is_first:
            print(f"error: {message}", file=sys.stderr, flush=True)
        self.wait()
        sys.exit(1)

    def in_turn(self, function: Callable[[], T]) -> T:
        """`function` on the first process, then on the others, which find what it wrote; all end where it fails."""
        own: list[T] = []
        self.ask_first(lambda: own.append(function()))
        return own[0] if self.is_first else function()


ALONE = Processes()


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone: NCCL's error has a type, gloo's has a text."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class EngineModule(nn.Module):
    """What the engine wraps: all parameters are below it, and whatever uses them runs within its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # accelerate looks here for the layers that FSDP2 shards one by one.
        self._no_split_modules = sorted(getattr(model, "_no_split_modules", None) or ())

    def forward(self, work: Callable[..., T], *arguments: Any) -> T:
        """work(model, ...). Where gradients are wanted, it returns a tuple of tensors: hooks look for tensors in it."""
        return work(self.model, *arguments)


def is_sharded(engine: nn.Module) -> bool:
    """Whether each process holds but a part of the weights (FSDP2)."""
    return isinstance(engine, FSDPModule)


def on_whole_weights(engine: nn.Module, work: Callable[[nn.Module], T], accelerator: Accelerator) -> T:
    """work(model) under FSDP2 without gradient, with all weights gathered, so that no forward is a collective.

    They are gathered once, in the dtype of FSDP2's forwards, and let go afterwards: a decode of many short steps would
    else gather each layer at every one, and all processes would have to take the same steps.
    """
    units: list[FSDPModule] = [module for module in engine.modules() if isinstance(module, FSDPModule)]

    def gather_and_work(model: nn.Module) -> T:
        for unit in units:
            unit.unshard()
        return work(model)

    def keep(keeps: bool) -> None:
        for unit in units:
            if unit is not engine:  # whose own weights FSDP2 lets stay anyway
                unit.set_reshard_after_forward(not keeps, recurse=False)

    reshards = bool(accelerator.state.fsdp_plugin.reshard_after_forward)
    if reshards:
        keep(True)
    try:
        return engine(gather_and_work)
    finally:
        if reshards:
            keep(False)
        for unit in units:
            unit.reshard()


def whole(named: Iterable[tuple[str, Tensor]], processes: Processes = ALONE) -> dict[str, Tensor]:
    """Whole tensors by name, on the CPU where FSDP2 had sharded them. All processes call it; one gets tensors."""
    found: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}
    for name, tensor in named:
        if isinstance(tensor, DTensor) and id(tensor) not in tied:
            gathered: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
            tied[id(tensor)] = gathered.cpu() if processes.is_first else gathered.new_empty(0)
        if processes.is_first:
            found[name] = tied.get(id(tensor), tensor.detach()).contiguous()
    return found


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, which every process has, sharded as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
