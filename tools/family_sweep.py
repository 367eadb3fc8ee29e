"""Every causal-LM family of the installed transformers, tiny and with random weights: right, or refused by name.

    python -m tools.family_sweep                       # all, some ten minutes on one core; status 1 where one is wrong
    python -m tools.family_sweep deepseek_v3 moshi     # these
    python -m tools.family_sweep --attention eager

Held against the model's own forward over prompt and item, each by itself, without padding, cache or tree: beam search
(prompts padded and not), its decode with split attention and on fixed memory, the scores of the whole catalogue, and
the gradients of the packed training forward. To be run when transformers is updated: new families come with it.
"""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from tawin_kernels import ItemTrie, linear_log_probs
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

from tawin import score_catalog
from tawin.model.backbone import backbone
from tawin.model.packing import packs
from tawin.model.token_tree import completion_states
from tawin.model.tree_attention import prefill
from tawin.search.completions import beam_sequences
from tawin.search.decode import BeamOptions, Sequences, decode
from tawin.search.fixed import FixedDecode

VOCABULARY = 40
SECONDS = 60  # of a family: some configs build towers for images that no option makes small

# Sizes by the names that families give them. A window of 4 and chunks of 4 are smaller than the prompts.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 64,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 4,
    "rotary_dim": 4,
    "attention_window": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_heads": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "attention_layers": ["global", "local"] * 2,
    "window_size": 4,
    "attention_chunk_size": 4,
    "intermediate_size_mlp": 48,
    "global_head_dim": 8,
    "max_seq_len": 64,
}
# With MLA each head has its own keys; fewer of them in the config, and these models fail by themselves.
_OWN_KEYS = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "sarvam_mla", "youtu")

Verdict = Literal["RIGHT", "REFUSED", "WRONG", "CRASH", "NOT BUILT", "TOO SLOW"]


@dataclass(frozen=True)
class Finding:
    """What came of one family."""

    family: str
    verdict: Verdict
    note: str


def build(family: str, attention: str | None = None) -> nn.Module:
    """In eval mode, fp32, with weights scaled up so that it has strong preferences. attention None: the family's."""
    name = NAMES[family]
    configuration = CONFIG_MAPPING[family]
    known = set(inspect.signature(configuration.__init__).parameters) | set(getattr(configuration, "attribute_map", {}))
    for parent in configuration.__mro__:
        known |= set(getattr(parent, "__annotations__", {}))
    sizes = {option: value for option, value in _SIZES.items() if option in known}
    if family in _OWN_KEYS and "num_key_value_heads" in known:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    config = configuration(**sizes)
    if attention is not None:
        config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)
    return model


def catalog() -> Tensor:
    """14 items of 3 tokens that share beginnings: int64 [14, 3]."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, 12, (40, 3), generator=draw).unique(dim=0)[:14]


def prompts(padded: bool) -> tuple[Tensor, Tensor]:
    """Left-padded: int64 [3, 9]."""
    draw = torch.Generator().manual_seed(2)
    input_ids = torch.randint(3, VOCABULARY, (3, 9), generator=draw)
    lengths = torch.tensor([9, 2, 6] if padded else [9, 9, 9])
    mask = (torch.arange(9) >= 9 - lengths[:, None]).long()
    return input_ids * mask, mask


def log_probs_alone(model: Any, input_ids: Tensor, mask: Tensor, items: Tensor) -> Tensor:
    """log p of every item after every prompt by the model's own forward, unpadded: [B, items]. Differentiable."""
    rows = []
    for ids, real in zip(input_ids, mask.bool(), strict=True):
        prompt = ids[real]
        sequences = torch.cat((prompt.expand(len(items), -1), items), dim=1)
        log_probs = model(input_ids=sequences, use_cache=False).logits[:, len(prompt) - 1 : -1].log_softmax(-1)
        rows.append(log_probs.gather(2, items[..., None])[..., 0].sum(1))
    return torch.stack(rows)


def _by_item(found: Sequences, trie: ItemTrie) -> Tensor:
    """Scores [B, W] of sequences as scores [B, items], -inf where one was not found."""
    leaves = trie.leaf_of_item.expand(len(found.nodes), -1)  # [B, items]
    place = (found.nodes[:, None] == leaves[..., None]).float()  # [B, items, W]
    scores = found.scores.gather(1, place.argmax(2))
    return scores.masked_fill(~place.any(2), -torch.inf)


def ways(model: nn.Module, trie: ItemTrie, input_ids: Tensor, mask: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Of this package, to log p of every item after every prompt, [B, items]."""
    width = trie.num_items

    def decoded(options: BeamOptions) -> Sequences:
        return decode(backbone(model), prefill(backbone(model), input_ids, mask), options)

    def fixed() -> Sequences:
        parts, run = backbone(model), FixedDecode(16, BeamOptions(trie, width))
        run.load(prefill(parts, input_ids, mask))
        return run.run(parts)

    found = {
        "beam_search": lambda: _by_item(beam_sequences(model, input_ids, mask, trie, width), trie),
        "fixed decode": lambda: _by_item(fixed(), trie),
        "score_catalog": lambda: score_catalog(model, input_ids, mask, trie),
    }
    if backbone(model).config._attn_implementation == "sdpa":
        found["split decode"] = lambda: _by_item(decoded(BeamOptions(trie, width, attention="split")), trie)
    return found


def gradient_error(model: nn.Module, input_ids: Tensor, mask: Tensor, items: Tensor) -> float:
    """Between the gradients of the packed training forward and of forwards alone, the largest, of the largest one."""
    parts = backbone(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    token_ids = items.expand(len(input_ids), -1, -1)
    direction = torch.randn(token_ids.shape[:2], generator=torch.Generator().manual_seed(3))
    states, rows = completion_states(parts, input_ids, mask, token_ids)
    weight, bias = parts.head_in(states.dtype)
    ours = (linear_log_probs(states, weight, token_ids, bias=bias, rows=rows).sum(-1) * direction).sum()
    theirs = (log_probs_alone(model, input_ids, mask, items) * direction).sum()
    pairs = zip(
        torch.autograd.grad(ours, trained, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(theirs, trained, allow_unused=True, materialize_grads=True),
        strict=True,
    )
    return max(float((own - other).abs().max() / other.abs().max().clamp_min(1.0)) for own, other in pairs)


def check(model: nn.Module) -> dict[str, float]:
    """The largest error of every way. ValueError, TypeError: the model is refused."""
    backbone(model)
    items = catalog()
    trie = ItemTrie.from_sequences(items)
    errors: dict[str, float] = {}
    for padded in (True, False):
        input_ids, mask = prompts(padded)
        with torch.no_grad():
            expected = log_probs_alone(model, input_ids, mask, items)
            for name, way in ways(model, trie, input_ids, mask).items():
                errors[name] = max(errors.get(name, 0.0), float((way() - expected).abs().max()))
        error = gradient_error(model, input_ids, mask, items)
        if error > TOLERANCE:  # by rounding alone? In CTRL it is: 3.7e-3 in fp32, 5e-15 in fp64
            error = gradient_error(model.double(), input_ids, mask, items)
            model.float()
        errors["gradients"] = max(errors.get("gradients", 0.0), error)
    return errors


# fp32 through four layers of scaled-up weights, summed in another order; a wrong one is off by .01 and more.
TOLERANCE = 2e-3


def try_family(family: str, attention: str | None = None) -> Finding:
    """Build one and check it."""
    try:
        model = build(family, attention)
    except Exception as error:  # a config that asks for more than these sizes
        return Finding(family, "NOT BUILT", f"{type(error).__name__}: {error}")
    try:
        errors = check(model)
    except (ValueError, TypeError) as error:
        is_ours = type(model).__name__ in str(error)
        return Finding(family, "REFUSED" if is_ours else "CRASH", str(error))
    except TimeoutError as error:
        return Finding(family, "TOO SLOW", str(error))
    except Exception as error:
        return Finding(family, "CRASH", f"{type(error).__name__}: {error}")
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    parts = backbone(model)
    way = "packed" if packs(parts, cached=True) else "packed in training" if packs(parts) else "padded"
    if wrong:
        return Finding(family, "WRONG", f"{way}; " + ", ".join(f"{name} {error:.1e}" for name, error in wrong.items()))
    return Finding(family, "RIGHT", f"{way}; largest error {max(errors.values()):.1e}")


def _late(*_: object) -> None:
    raise TimeoutError(f"{SECONDS} s are over")


def main(arguments: list[str] | None = None) -> int:
    """A line a family. Returns 1 where one is wrong or crashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(NAMES))
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="default: the family's")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _late)
    bad = 0
    for family in options.families:
        signal.alarm(SECONDS)
        finding = try_family(family, options.attention)
        signal.alarm(0)
        bad += finding.verdict in ("WRONG", "CRASH")
        print(f"{finding.family:24s} {finding.verdict:9s} {finding.note.splitlines()[0][:160]}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
