"""Dropout added from outside: what it drops, and that it leaves everything else as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tawin.config import GRPOConfig, PolicyConfig
from tawin.model.backbone import backbone
from tawin.model.dropout import add_dropout
from tawin.model.policy import add_lora
from tawin.rl.rollout import may_share_prompts
from tawin.search.graphs import obstacle

from ..models import FAMILIES, tiny_model

INPUT_IDS = torch.tensor([[3, 5, 7, 9]])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_acts_in_train_mode_alone_and_has_no_weights(family: str) -> None:
    model = tiny_model(family).eval()
    expected, names = model(input_ids=INPUT_IDS).logits, model.state_dict().keys()
    add_dropout(model, 0.5)
    assert torch.equal(model(input_ids=INPUT_IDS).logits, expected)
    assert model.state_dict().keys() == names
    assert obstacle(backbone(model)) is None  # a captured rollout is in eval mode
    model.train()
    torch.manual_seed(0)
    dropped = model(input_ids=INPUT_IDS).logits
    assert not torch.allclose(dropped, expected, atol=1e-3)
    torch.manual_seed(0)
    assert torch.equal(model(input_ids=INPUT_IDS).logits, dropped)


def test_it_drops_the_embeddings_and_what_attention_and_mlp_add() -> None:
    model = tiny_model("qwen2").train()
    add_dropout(model, 0.5)
    shares = []

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        shares.append(float((output == 0).float().mean()))

    layers = model.model.layers
    ends = [
        model.get_input_embeddings(),
        *(end for layer in layers for end in (layer.self_attn.o_proj, layer.mlp.down_proj)),
    ]
    for module in ends:
        module.register_forward_hook(count)
    torch.manual_seed(0)
    model(input_ids=torch.randint(3, 30, (8, 32)))
    assert len(shares) == 1 + 2 * len(layers)
    # 256 positions of at least 16 values: the share lies within 0.05 of a half by far more than six deviations.
    assert all(abs(share - 0.5) < 0.05 for share in shares)


def test_a_copy_drops_on_its_own() -> None:
    model = tiny_model("qwen2").train()
    add_dropout(model, 0.5)
    copied = copy.deepcopy(model).eval()
    expected = tiny_model("qwen2").eval()(input_ids=INPUT_IDS).logits
    assert torch.equal(copied(input_ids=INPUT_IDS).logits, expected)


def test_prompts_are_not_shared_with_a_policy_that_drops() -> None:
    model = tiny_model("qwen2")
    assert may_share_prompts(model, GRPOConfig(beta=0.1))
    add_dropout(model, 0.1)
    assert not may_share_prompts(model, GRPOConfig(beta=0.1))


def test_it_goes_with_adapters() -> None:
    model = add_lora(tiny_model("qwen2"), PolicyConfig(lora_rank=2), [5, 6]).eval()
    expected = model(input_ids=INPUT_IDS).logits
    add_dropout(model, 0.5)
    assert torch.equal(model(input_ids=INPUT_IDS).logits, expected)
    assert not torch.allclose(model.train()(input_ids=INPUT_IDS).logits, expected, atol=1e-3)


def test_a_decoder_without_such_projections_is_refused() -> None:
    model = tiny_model("qwen2")
    model.model.layers[0].mlp = nn.Identity()
    with pytest.raises(ValueError, match=r"policy.hidden_dropout: expected 0 for Qwen2ForCausalLM"):
        add_dropout(model, 0.1)
