"""One model in several threads: a call of tawin leaves every other forward, and the model, as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tawin_kernels import ItemTrie
from torch import Tensor, nn

from tawin.model.attention.switch import attending, current, require_asked
from tawin.model.backbone import backbone
from tawin.model.packing import checkpoint_activations
from tawin.model.token_tree import completion_states
from tawin.search.completions import beam_search

from ...models import ragged_prompts, tiny_model

# fp32; the same forward twice, so nothing but threads could come between.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
TRIE = ItemTrie.from_sequences([[3, 4, 5], [3, 4, 6], [3, 7, 8], [9, 10, 11], [9, 10, 12]])
OTHER_TRIE = ItemTrie.from_sequences([[13, 5, 6], [13, 5, 7], [14, 20, 21]])
PROMPTS, OTHER_PROMPTS = ragged_prompts(3, 6), ragged_prompts(2, 9, seed=1)
COMPLETIONS = torch.tensor([[[3, 4, 5], [3, 7, 8]]] * 3)


def lora_model() -> nn.Module:
    model = get_peft_model(tiny_model("qwen2"), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return model.eval()


def checkpointed_model() -> nn.Module:
    model = tiny_model("qwen2").train()
    checkpoint_activations(model)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen2": lambda: tiny_model("qwen2"),
    "sliding windows": lambda: tiny_model("gemma3"),
    "a window in all layers": lambda: tiny_model("mistral"),
    "eager": lambda: tiny_model("qwen2", attention="eager"),
    "train mode": lambda: tiny_model("qwen2").train(),
    "LoRA": lora_model,
    "checkpoints": checkpointed_model,
}


def search(model: nn.Module) -> Tensor:
    return beam_search(model, *PROMPTS, TRIE, 4).scores


def other_search(model: nn.Module) -> Tensor:
    return beam_search(model, *OTHER_PROMPTS, OTHER_TRIE, 2).scores


def forward(model: Any) -> Tensor:
    input_ids, mask = OTHER_PROMPTS
    with torch.no_grad():
        return model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[mask.bool()]


def training(model: nn.Module) -> Tensor:
    """A packed forward over prompts and completions, and what its backward gives the first weight that is trained."""
    states, _ = completion_states(backbone(model), *PROMPTS, COMPLETIONS)
    trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    return torch.autograd.grad(states.sum(), trained)[0]


CALLS = {"search": search, "forward": forward, "training": training, "other search": other_search}


def in_the_middle(model: nn.Module, call: Callable[[nn.Module], Tensor], other: Callable[[nn.Module], Tensor]) -> Any:
    """The result of `call`, and those of `other`, which another thread runs as a whole each time that a layer, its
    attention or its MLP begins or ends in this one."""
    mine, results = threading.get_ident(), []

    def pause(*_: Any) -> None:
        if threading.get_ident() == mine:
            results.append(thread.submit(other, model).result(timeout=60))

    decoder: Any = backbone(model).decoder
    parts = [part for layer in decoder.layers for part in (layer, layer.self_attn, layer.mlp)]
    hooks = [part.register_forward_pre_hook(pause) for part in parts]
    hooks += [part.register_forward_hook(pause) for part in parts]
    try:
        with ThreadPoolExecutor(1) as thread:
            return call(model), results
    finally:
        for hook in hooks:
            hook.remove()


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("other", ["forward", "other search", "training"])
@pytest.mark.parametrize("call", ["search", "forward", "training"])
@pytest.mark.parametrize("kind", MODELS)
def test_two_threads_run_one_model_each_as_if_it_were_alone(kind: str, call: str, other: str) -> None:
    model: Any = MODELS[kind]()
    expected, others = CALLS[call](model), CALLS[other](model)
    before = modes(model)
    found, results = in_the_middle(model, CALLS[call], CALLS[other])
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert len(results) >= 12
    for result in results:
        torch.testing.assert_close(result, others, **TOLERANCE)
    assert modes(model) == before
    assert backbone(model).config._attn_implementation == ("eager" if kind == "eager" else "sdpa")


@pytest.mark.parametrize("kind", ["qwen2", "train mode", "LoRA"])
def test_a_model_is_tried_out_without_a_trace_in_another_threads_forward(kind: str) -> None:
    """The very first call of a model runs its trials."""
    expected = forward(MODELS[kind]())
    model = MODELS[kind]()
    mine, results, is_running = threading.get_ident(), [], False

    def pause(*_: Any) -> None:
        nonlocal is_running
        if threading.get_ident() == mine and not is_running:
            is_running = True
            results.append(thread.submit(forward, model).result(timeout=60))
            is_running = False

    for module in model.modules():
        if type(module).__name__ == "Qwen2MLP":
            module.register_forward_hook(pause)
    with ThreadPoolExecutor(1) as thread:
        search(model)
    assert len(results) > 10
    for result in results:
        torch.testing.assert_close(result, expected, **TOLERANCE)


@pytest.mark.parametrize("call", ["search", "training"])
@pytest.mark.parametrize("kind", ["qwen2", "sliding windows", "LoRA"])
def test_an_error_in_a_call_leaves_the_model_as_it_was(kind: str, call: str) -> None:
    model = MODELS[kind]()
    expected, others = forward(model), CALLS[call](model)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    decoder: Any = backbone(model).decoder
    for part in (decoder.layers[0].mlp, decoder.layers[-1].mlp, decoder.layers[-1].self_attn):
        hook = part.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            CALLS[call](model)
        hook.remove()
        assert current() is None and backbone(model).config._attn_implementation == "sdpa"
        torch.testing.assert_close(forward(model), expected, **TOLERANCE)
        torch.testing.assert_close(CALLS[call](model), others, **TOLERANCE)


def test_many_threads_at_once_find_what_one_finds() -> None:
    model = tiny_model("qwen2")
    expected = {name: call(model) for name, call in CALLS.items()}
    names = list(CALLS) * 10
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda name: CALLS[name](model), names))
    for name, result in zip(names, found, strict=True):
        torch.testing.assert_close(result, expected[name], **TOLERANCE)


class Nothing:
    def attend(self, module: Any, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(query).transpose(1, 2), None


def test_within_it_the_layers_of_this_thread_attend_as_told() -> None:
    model = tiny_model("qwen2")
    plain = forward(model)
    with attending(Nothing()):
        assert not torch.allclose(forward(model), plain, atol=1e-2)
        require_asked(model)
        with attending(None):
            torch.testing.assert_close(forward(model), plain)
    torch.testing.assert_close(forward(model), plain)


def test_a_decoder_that_does_not_ask_is_refused() -> None:
    model = tiny_model("qwen2", attention="eager")
    with attending(Nothing()):
        forward(model)
        with pytest.raises(RuntimeError, match="Qwen2ForCausalLM: its layers did not run the attention of this call"):
            require_asked(model)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_model_that_was_searched_compiles_as_a_whole() -> None:
    model = tiny_model("qwen2")
    search(model)
    input_ids, mask = OTHER_PROMPTS[0][:1], None
    with torch.no_grad():
        expected = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        found = compiled(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(found, expected, **TOLERANCE)
