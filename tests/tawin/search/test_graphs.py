"""What a captured beam search depends on, and on a GPU that a replay finds what the search itself finds."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie
from torch import nn

from tawin.model.backbone import Backbone, backbone
from tawin.model.tree_attention import Prompt, prefill
from tawin.search import graphs as decode_graphs
from tawin.search.completions import beam_search
from tawin.search.decode import BeamOptions, Sequences, decode
from tawin.search.fixed import FixedDecode
from tawin.search.graphs import PROMPT_STEP, ModelGraphs, addresses_of, obstacle, replay

from ..models import ragged_prompts, tiny_model

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA graphs")
ITEMS = [[3, 4, 5], [3, 4, 6], [3, 7, 8], [9, 10, 11], [9, 10, 12], [9, 4, 4], [13, 5, 6]]


def lora_model() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model("qwen2", tie_word_embeddings=False), LoraConfig(r=2, target_modules=["lm_head", "q_proj"])
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return model


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_updates_in_place_keep_the_addresses_and_a_new_parameter_changes_them() -> None:
    model = tiny_model("qwen2")
    parts = backbone(model)
    before = addresses_of(parts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert addresses_of(parts) == before
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert addresses_of(parts) != before


def test_switching_adapters_or_attention_changes_what_a_graph_depends_on() -> None:
    model = lora_model()
    before = addresses_of(backbone(model))
    with model.disable_adapter():
        assert addresses_of(backbone(model)) != before
    assert addresses_of(backbone(model)) == before
    model.get_base_model().config._attn_implementation = "eager"
    assert addresses_of(backbone(model)) != before


def test_another_scale_or_set_of_adapters_changes_what_a_graph_depends_on() -> None:
    model: Any = lora_model()
    before = addresses_of(backbone(model))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.set_scale("default", 3.0)
    scaled = addresses_of(backbone(model))
    layer.merge()
    assert len({before, scaled, addresses_of(backbone(model))}) == 3


@torch.no_grad()
def test_the_tree_of_a_model_is_walked_again_only_where_a_module_was_put_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rerun_with_room_for(monkeypatch, 4)
    walks = 0
    walk = decode_graphs._walk

    def counted(model: Backbone) -> list[nn.Module]:
        nonlocal walks
        walks += 1
        return walk(model)

    monkeypatch.setattr(decode_graphs, "_walk", counted)
    model: Any = tiny_model("qwen2")
    parts, options = backbone(model), BeamOptions(ItemTrie.from_sequences(ITEMS), 3)

    def search() -> Sequences | None:
        return replay(parts, prefill(parts, *ragged_prompts(2, 5)), options)

    search()
    first = walks
    before = search()
    assert before is not None and walks == first
    other: Any = tiny_model("qwen2", seed=1).model.layers[0].mlp
    model.model.layers[0].mlp = other
    after = search()
    assert after is not None and walks > first
    assert not torch.allclose(after.scores, before.scores, atol=1e-3)
    expected = decode(parts, prefill(parts, *ragged_prompts(2, 5)), options)
    torch.testing.assert_close(after.scores, expected.scores)
    other.train()
    with pytest.warns(RuntimeWarning, match="is in training mode"):
        assert search() is None


@pytest.mark.parametrize("make", [lambda: tiny_model("qwen2"), lambda: tiny_model("gemma3"), lora_model])
def test_a_model_in_eval_mode_may_be_captured(make: Any) -> None:
    assert obstacle(backbone(make())) is None


def test_what_a_replay_would_leave_out_is_named() -> None:
    model = tiny_model("qwen2")
    model.model.layers[1].mlp.train()
    assert "layers.1.mlp (Qwen2MLP) is in training mode" in str(obstacle(backbone(model)))
    model.eval()
    hook = model.model.norm.register_forward_hook(lambda _module, _inputs, output: output)
    assert "norm (Qwen2RMSNorm) has forward hooks" in str(obstacle(backbone(model)))
    hook.remove()
    assert obstacle(backbone(model)) is None
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "dynamic rotary" in str(obstacle(backbone(tiny_model("llama", rope_parameters=rope))))


def test_a_model_says_once_why_it_runs_without_graphs() -> None:
    own = ModelGraphs()
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: a reason"):
        own.warn("a reason")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.warn("another")


class Rerun:
    """In the place of a captured graph: the same decode on the same memory, run eagerly, where there is no GPU."""

    def __init__(self, model: Backbone, prompt: Prompt, decode: FixedDecode) -> None:
        self.model, self.decode = weakref.ref(model), decode  # as a graph, it refers to no model

    def search(self, prompt: Prompt) -> Sequences:
        self.decode.load(prompt)
        return self.decode.run(self.model())


def rerun_with_room_for(monkeypatch: pytest.MonkeyPatch, graphs: int) -> None:
    monkeypatch.setattr(decode_graphs, "_capture", Rerun)
    monkeypatch.setattr(decode_graphs, "_bytes_of", lambda *_: 10)
    monkeypatch.setattr(decode_graphs, "_budget", lambda _: 10 * graphs + 5)


@torch.no_grad()
def test_a_shape_is_captured_when_it_comes_back_and_serves_every_length_up_to_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rerun_with_room_for(monkeypatch, 4)
    parts, options = backbone(tiny_model("qwen2")), BeamOptions(ItemTrie.from_sequences(ITEMS), 3)
    assert replay(parts, prefill(parts, *ragged_prompts(4, 5)), options) is None
    graphs = decode_graphs._models[parts.decoder].graphs
    assert not graphs
    for length in (9, 5, PROMPT_STEP):
        prompts = ragged_prompts(4, length, seed=length)
        found = replay(parts, prefill(parts, *prompts), options)
        expected = decode(parts, prefill(parts, *prompts), options)
        assert found is not None and torch.equal(found.nodes, expected.nodes)
        assert len(graphs) == 1
    assert replay(parts, prefill(parts, *ragged_prompts(4, PROMPT_STEP + 1)), options) is None
    assert replay(parts, prefill(parts, *ragged_prompts(3, 5)), options) is None
    assert replay(parts, prefill(parts, *ragged_prompts(4, 5)), BeamOptions(options.trie, 2)) is None
    assert replay(parts, prefill(parts, *ragged_prompts(4, 5)), BeamOptions(ItemTrie.from_sequences(ITEMS), 3)) is None


@torch.no_grad()
def test_graphs_that_do_not_come_back_go_for_a_shape_that_does_and_all_go_with_a_moved_parameter_or_their_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rerun_with_room_for(monkeypatch, 4)
    model = tiny_model("qwen2")
    parts, trie = backbone(model), ItemTrie.from_sequences(ITEMS)
    for width in (1, 2, 3, 4, 1, 5):
        for _ in range(2):
            replay(parts, prefill(parts, *ragged_prompts(2, 5)), BeamOptions(trie, width))
    graphs = decode_graphs._models[parts.decoder].graphs
    assert [key[2].beam_width for key in graphs] == [3, 4, 1, 5]
    model.model.norm.weight = nn.Parameter(model.model.norm.weight.clone())
    replay(parts, prefill(parts, *ragged_prompts(2, 5)), BeamOptions(trie, 5))
    assert [key[2].beam_width for key in graphs] == [5]
    gc.collect()  # of what earlier tests left
    models = len(decode_graphs._models)
    del model, parts
    gc.collect()
    assert len(decode_graphs._models) == models - 1


@torch.no_grad()
def test_more_shapes_than_there_is_room_for_that_take_turns_capture_no_graph_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rerun_with_room_for(monkeypatch, 3)
    captures = []

    def capture(*inputs: Any) -> Rerun:
        captures.append(inputs[2])
        return Rerun(*inputs)

    monkeypatch.setattr(decode_graphs, "_capture", capture)
    parts, trie = backbone(tiny_model("qwen2")), ItemTrie.from_sequences(ITEMS)
    replays = 0
    for _ in range(6):
        for width in range(1, 6):
            found = replay(parts, prefill(parts, *ragged_prompts(2, 5)), BeamOptions(trie, width))
            replays += found is not None
    assert len(captures) == 3 and replays == 3 * 5
    for _ in range(3):  # the first three never come back
        for width in (4, 5):
            found = replay(parts, prefill(parts, *ragged_prompts(2, 5)), BeamOptions(trie, width))
    assert found is not None and len(captures) == 5


@torch.no_grad()
def test_a_graph_counts_by_its_keys_and_values_and_one_is_kept_whatever_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode_graphs, "_capture", Rerun)
    monkeypatch.setattr(decode_graphs, "_BYTES_BESIDE_KEYS", 0)
    monkeypatch.setattr(decode_graphs, "_budget", lambda _: 0)
    parts, options = backbone(tiny_model("qwen2")), BeamOptions(ItemTrie.from_sequences(ITEMS), 3)
    for _ in range(2):
        found = replay(parts, prefill(parts, *ragged_prompts(4, 5)), options)
    own = decode_graphs._models[parts.decoder]
    (graph,) = own.graphs.values()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in graph.decode._cache.layers)
    assert found is not None and list(own.bytes.values()) == [held]


@torch.no_grad()
def test_a_failed_capture_is_warned_of_once_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def fail(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("operation not permitted")

    rerun_with_room_for(monkeypatch, 4)
    monkeypatch.setattr(decode_graphs, "_capture", fail)
    parts, options = backbone(tiny_model("qwen2")), BeamOptions(ItemTrie.from_sequences(ITEMS), 3)
    replay(parts, prefill(parts, *ragged_prompts(4, 5)), options)
    with pytest.warns(RuntimeWarning, match="capture failed: RuntimeError: operation not permitted"):
        assert replay(parts, prefill(parts, *ragged_prompts(4, 5)), options) is None
    with no_warning():
        assert replay(parts, prefill(parts, *ragged_prompts(4, 5)), options) is None
    assert tries == 1


def test_on_the_cpu_no_graph_is_thought_of() -> None:
    model = tiny_model("qwen2")
    trie = ItemTrie.from_sequences(ITEMS)
    for _ in range(3):
        beam_search(model, *ragged_prompts(2, 4), trie, 3)
    assert model.get_decoder() not in decode_graphs._models


def assert_replays_what_is_searched(
    model: nn.Module, trie: ItemTrie, calls: int = 4, *, batch: int = 3, **options: Any
) -> None:
    """`calls` batches of several lengths below one multiple of PROMPT_STEP: the second captures, the rest replay."""
    for call in range(calls):
        input_ids, mask = (tensor.cuda() for tensor in ragged_prompts(batch, 4 + call, seed=call))
        expected = beam_search(model, input_ids, mask, trie, 4, cuda_graphs=False, **options)
        found = beam_search(model, input_ids, mask, trie, 4, **options)
        assert torch.equal(found.item_ids, expected.item_ids)
        # Another length of the keys picks other kernels, tf32 or not; bf16 under autocast rounds to 3 digits.
        torch.testing.assert_close(found.scores, expected.scores, atol=5e-2, rtol=0)


def captured(model: nn.Module) -> int:
    return len(decode_graphs._models[backbone(model).decoder].graphs)


@needs_gpu
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma3"])
def test_a_replay_finds_what_the_search_finds(family: str, normalizer: str) -> None:
    model = tiny_model(family).cuda()
    with no_warning():
        assert_replays_what_is_searched(model, ItemTrie.from_sequences(ITEMS).to("cuda"), normalizer=normalizer)
    assert captured(model) == 1


@needs_gpu
def test_a_replay_sees_new_weights_in_place_and_in_another_place() -> None:
    model, trie = tiny_model("qwen2").cuda(), ItemTrie.from_sequences(ITEMS).to("cuda")
    assert_replays_what_is_searched(model, trie)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    assert_replays_what_is_searched(model, trie)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone().neg())
    assert_replays_what_is_searched(model, trie)
    assert captured(model) == 1


@needs_gpu
def test_a_replay_follows_autocast_and_an_lm_head_with_lora() -> None:
    model, trie = lora_model().cuda(), ItemTrie.from_sequences(ITEMS).to("cuda")
    with no_warning():
        assert_replays_what_is_searched(model, trie)
        with torch.autocast("cuda", torch.bfloat16):
            assert_replays_what_is_searched(model, trie)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.neg_()
        assert_replays_what_is_searched(model, trie)
    assert captured(model) == 2


@needs_gpu
def test_few_graphs_are_kept_and_none_outlives_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, trie = tiny_model("qwen2").cuda(), ItemTrie.from_sequences(ITEMS).to("cuda")
    monkeypatch.setattr(decode_graphs, "_bytes_of", lambda *_: 10)
    monkeypatch.setattr(decode_graphs, "_budget", lambda _: 40)
    for batch in range(1, 7):
        assert_replays_what_is_searched(model, trie, 3, batch=batch)
    assert captured(model) == 4
    models = len(decode_graphs._models)
    del model
    gc.collect()
    assert len(decode_graphs._models) == models - 1


@needs_gpu
def test_what_cannot_be_captured_runs_without_a_graph_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    model, trie = tiny_model("qwen2").cuda(), ItemTrie.from_sequences(ITEMS).to("cuda")
    plain = decode_graphs.FixedDecode.run

    def synchronising(self: Any, parts: Any) -> Any:
        found = plain(self, parts)
        found.scores.sum().item()
        return found

    monkeypatch.setattr(decode_graphs.FixedDecode, "run", synchronising)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: capture failed") as warned:
        assert_replays_what_is_searched(model, trie)
    assert len([w for w in warned if w.category is RuntimeWarning]) == 1
    assert captured(model) == 0
