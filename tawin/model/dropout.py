"""Dropout for decoders that have none of their own, added from outside. Knows nothing of training loops."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .backbone import backbone


def add_dropout(model: nn.Module, share: float) -> None:
    """Dropout on the embeddings and on what each layer's attention and MLP add to them, as GPT-2 and SASRec have it.

    In Gemma it comes before the norm that follows attention and MLP there.

    It is active in train mode, has no weights, and is not saved with the model: whoever trains it again adds it again.

    Args:
        model: a causal LM, or a peft model.
        share: of the values that are dropped, in [0, 1).

    Raises:
        ValueError: where a layer does not end its attention in one `o_proj` and its MLP in one `down_proj`.
    """
    decoder: Any = backbone(model).decoder
    ends = [decoder.get_input_embeddings()]
    for layer in decoder.layers:
        found = [module for name, module in layer.named_modules() if name.split(".")[-1] in ("o_proj", "down_proj")]
        if len(found) != 2:
            raise ValueError(
                f"policy.hidden_dropout: expected 0 for {type(model).__name__}, whose layers do not add one o_proj and "
                f"one down_proj to the hidden state, got {share}"
            )
        ends += found
    for module in ends:
        # A submodule, where whoever looks for dropout in a model finds it.
        module.add_module("hidden_dropout", nn.Dropout(share).train(module.training))
        module.register_forward_hook(drop_in_training)


def drop_in_training(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The hook behind it: the identity in eval mode, so that a captured rollout loses nothing without it."""
    dropout: Any = module.hidden_dropout
    return dropout(output)
