"""tawin_grpo_loss: its three parts in one, gradients, what it reads and keeps, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from tawin_kernels import ItemTrie, TAWin, group_advantages, grpo_loss, linear_log_probs, tawin_grpo_loss

from .loss_refusals import LOSS_REFUSALS, empty_meta

NAN = math.nan
INF = math.inf
CLIPPED = ("grpo", "dapo", "dr_grpo", "gspo", "bnpo")
LOSS_TYPES = (*CLIPPED, "cispo")
V, H = 7, 3
STATES = torch.zeros(5, H)
ROWS = torch.zeros(2, 3, 4, dtype=torch.int64)
TRIE = ItemTrie.from_sequences(torch.tensor([[0]]))


def completions(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    """Three groups of four: one live, one dead, one live with an invalid completion."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 4, 3, generator=generator) < 0.7
    mask[..., 0] = True
    mask[2, 3] = False
    return {
        "hidden": torch.randn(3, 4, 3, H, generator=generator, dtype=torch.float64).to(dtype),
        "lm_head_weight": torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype),
        "bias": torch.randn(V, generator=generator, dtype=torch.float64).to(dtype),
        "token_ids": torch.randint(0, V, (3, 4, 3), generator=generator).masked_fill(~mask, -100),
        "mask": mask,
        "rewards": torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]),
        "scores": torch.randn(3, 4, generator=generator).masked_fill(~mask.any(-1), -INF),
    }


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("tawin", [None, TAWin(anchor=1, window=1.5)])
def test_the_fused_loss_is_its_three_parts(loss_type, beta, tawin):
    batch = completions()
    noise = torch.randn(3, 4, 3, dtype=torch.float64)
    options = {
        "old_log_probs": 0.3 * noise - 2,
        "ref_log_probs": 0.3 * noise.flip(0) - 2,
        "loss_type": loss_type,
        "beta": beta,
        "epsilon_low": 0.1,
        "epsilon_high": 1.4 if loss_type == "cispo" else 0.4,
    }
    leaves = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    fused = tawin_grpo_loss(**batch, **options, tawin=tawin, temperature=0.9)
    fused_gradients = torch.autograd.grad(fused.loss, leaves)

    log_probs = linear_log_probs(
        batch["hidden"], batch["lm_head_weight"], batch["token_ids"], temperature=0.9, bias=batch["bias"]
    )
    advantages = group_advantages(batch["rewards"].double(), batch["scores"], tawin=tawin, valid=batch["mask"].any(-1))
    parts = grpo_loss(log_probs, batch["mask"], advantages, **options)
    for value, expected in zip(fused, parts, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    for gradient, expected in zip(fused_gradients, torch.autograd.grad(parts.loss, leaves), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradients_of_the_fused_loss_are_right(loss_type, beta):
    batch = completions()
    old = torch.randn(3, 4, 3, dtype=torch.float64) - 2

    def loss(hidden, lm_head_weight, bias):
        changed = {**batch, "hidden": hidden, "lm_head_weight": lm_head_weight, "bias": bias}
        return tawin_grpo_loss(
            **changed, old_log_probs=old, ref_log_probs=old.flip(0), loss_type=loss_type, beta=beta
        ).loss

    inputs = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_with_a_reference_log_probs_come_back_for_dead_groups_too_and_their_gradient_is_zero_without_kl(beta):
    batch = completions()
    hidden = batch["hidden"].requires_grad_()
    result = tawin_grpo_loss(**batch, beta=beta, ref_log_probs=torch.zeros(3, 4, 3))
    assert bool((result.log_probs[batch["mask"]] < 0).all())
    assert bool((result.log_probs[~batch["mask"]] == 0).all())
    result.loss.backward()
    assert bool((hidden.grad[1] == 0).all()) == (beta == 0)
    assert result.advantages[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_without_kl_only_completions_with_an_advantage_keep_their_logits_for_the_backward_pass(beta):
    batch = completions()
    batch["hidden"].requires_grad_()
    saved_rows = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 2 and tensor.shape[-1] == V and len(tensor) != H:  # [rows, V], not the weight turned round
            saved_rows.append(len(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = tawin_grpo_loss(**batch, beta=beta, ref_log_probs=torch.zeros(3, 4, 3))
    has_advantage = (result.advantages != 0)[..., None] | (beta > 0)
    assert set(saved_rows) == {int((batch["mask"] & has_advantage).sum())}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_fused_loss_never_reads_what_is_masked_or_invalid(loss_type):
    batch = completions(dtype=torch.float32)
    mask = batch["mask"]
    mask[2, 3] = True  # tokens of a completion that is declared not to exist
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2, 3] = False
    read = mask & valid[..., None]
    poisoned = {
        **batch,
        "hidden": batch["hidden"].masked_fill(~read[..., None], NAN),
        "token_ids": batch["token_ids"].masked_fill(~read, 12345),
        "rewards": batch["rewards"].masked_fill(~valid, NAN),
        "scores": batch["scores"].masked_fill(~valid, NAN),
    }
    leaves = ("hidden", "lm_head_weight", "bias")
    gradients = []
    results = []
    for tensors in ({**batch, "token_ids": batch["token_ids"].clamp(min=0)}, poisoned):
        inputs = [tensors[name].detach().requires_grad_() for name in leaves]
        result = tawin_grpo_loss(
            **{**tensors, **dict(zip(leaves, inputs, strict=True))}, valid=valid, loss_type=loss_type, epsilon_high=1.2
        )
        gradients.append(torch.autograd.grad(result.loss, inputs))
        results.append(result)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("old", [None, "given"])
def test_without_kl_a_completion_of_advantage_zero_never_reaches_the_head(loss_type, old):
    batch = completions()
    options = {"loss_type": loss_type, "epsilon_high": 1.2}
    options["old_log_probs"] = None if old is None else torch.randn(3, 4, 3, dtype=torch.float64) - 2
    whole = tawin_grpo_loss(**batch, **options)
    has_advantage = (whole.advantages != 0)[..., None]
    assert bool((whole.log_probs[batch["mask"]] < 0).all())
    batch["hidden"] = batch["hidden"].masked_fill(~has_advantage[..., None], NAN).requires_grad_()
    part = tawin_grpo_loss(**batch, **options, all_log_probs=False)
    assert torch.equal(part.log_probs, whole.log_probs.masked_fill(~has_advantage, 0.0))
    for name in ("loss", "advantages", "kl", "clip_fraction"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name), atol=1e-12, rtol=0)
    part.loss.backward()
    assert bool((batch["hidden"].grad[1] == 0).all()) and bool(batch["hidden"].grad.isfinite().all())


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_shared_states_give_the_loss_and_gradients_of_the_same_states_apart(normalizer):
    batch = completions()
    shared = torch.randn(5, H, dtype=torch.float64)
    rows = torch.randint(0, 5, (3, 4, 3))
    options = {}
    if normalizer == "trie":
        trie = ItemTrie.from_sequences(torch.arange(V)[:, None].repeat(1, 3))
        batch["token_ids"] = torch.randint(0, V, (3, 4, 3)).masked_fill(~batch["mask"], -100)
        options = {"normalizer": "trie", "trie": trie, "nodes": torch.zeros(3, 4, 3, dtype=torch.int64)}
    results, gradients = [], []
    for changes in ({"hidden": shared, "rows": rows}, {"hidden": shared[rows]}):
        arguments = {**batch, **options, **changes}
        leaves = [arguments[name].detach().requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
        arguments.update(zip(("hidden", "lm_head_weight", "bias"), leaves, strict=True))
        results.append(tawin_grpo_loss(**arguments))
        gradients.append(list(torch.autograd.grad(results[-1].loss, leaves)))
    gradients[1][0] = torch.zeros_like(shared).index_add(0, rows.flatten(), gradients[1][0].flatten(0, 2))
    for a, b in (*zip(*results, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_with_the_trie_as_normalizer_a_completion_competes_with_its_siblings_only():
    trie = ItemTrie.from_sequences(torch.tensor([[0, 3], [0, 5], [2, 3]]))
    hidden = torch.randn(1, 2, 2, H, dtype=torch.float64)
    weight = torch.randn(V, H, dtype=torch.float64)
    token_ids = torch.tensor([[[0, 5], [2, 3]]])
    nodes = torch.stack(
        [torch.zeros(1, 2, dtype=torch.int64), trie.child(torch.zeros(1, 2, dtype=torch.int64), token_ids[..., 0])], -1
    )
    result = tawin_grpo_loss(
        hidden,
        weight,
        token_ids,
        torch.ones(1, 2, 2, dtype=torch.bool),
        torch.tensor([[1.0, 0.0]]),
        None,
        tawin=None,
        normalizer="trie",
        trie=trie,
        nodes=nodes,
    )
    logits = hidden @ weight.T
    expected = [
        [logits[0, 0, 0, [0, 2]].log_softmax(0)[0], logits[0, 0, 1, [3, 5]].log_softmax(0)[1]],
        [logits[0, 1, 0, [0, 2]].log_softmax(0)[1], torch.zeros((), dtype=torch.float64)],
    ]
    torch.testing.assert_close(result.log_probs[0], torch.stack([torch.stack(row) for row in expected]))


def test_an_ignored_token_inside_the_mask_is_masked_out():
    batch = completions()
    everything = {**batch, "mask": torch.ones_like(batch["mask"])}
    assert all(torch.equal(a, b) for a, b in zip(tawin_grpo_loss(**everything), tawin_grpo_loss(**batch), strict=True))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_of_dead_groups_gives_zero_with_a_gradient_path(loss_type):
    batch = completions()
    batch["rewards"].zero_()
    leaves = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    result = tawin_grpo_loss(**batch, loss_type=loss_type, epsilon_high=1.2)
    assert result.loss.item() == 0.0
    assert all(bool((gradient == 0).all()) for gradient in torch.autograd.grad(result.loss, leaves))


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0)])
def test_an_empty_batch_gives_zero(shape):
    hidden = torch.zeros(*shape, H, requires_grad=True)
    result = tawin_grpo_loss(
        hidden,
        torch.randn(V, H),
        torch.zeros(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape[:2]),
        torch.zeros(shape[:2]),
    )
    assert result.loss.item() == 0.0
    result.loss.backward()


def test_plain_grpo_needs_no_scores():
    batch = completions()
    without = tawin_grpo_loss(**{**batch, "scores": None}, tawin=None)
    assert torch.equal(without.loss, tawin_grpo_loss(**batch, tawin=None).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_hidden_states_give_an_fp32_loss(dtype):
    batch = completions(dtype=dtype)
    result = tawin_grpo_loss(**batch)
    wide = {**batch, **{name: batch[name].float() for name in ("hidden", "lm_head_weight", "bias")}}
    assert all(torch.equal(a, b) for a, b in zip(result, tawin_grpo_loss(**wide), strict=True))
    assert result.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *LOSS_REFUSALS,
        ({"hidden": torch.zeros(2, 3, H)}, ValueError, r"hidden: expected shape \[B, G, L, H\]"),
        ({"hidden": torch.zeros(2, 3, 4, H).long()}, TypeError, "hidden: expected dtype"),
        ({"lm_head_weight": torch.zeros(V, H + 1)}, ValueError, "lm_head_weight: expected shape"),
        ({"lm_head_weight": torch.zeros(V, H).double()}, TypeError, "lm_head_weight: .*hidden, float32, got float64"),
        ({"lm_head_weight": empty_meta(V, H)}, ValueError, "lm_head_weight: expected device"),
        ({"token_ids": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"token_ids: expected shape \[B, G, L\]"),
        ({"token_ids": torch.zeros(2, 3, 4)}, TypeError, "token_ids: expected dtype int64"),
        ({"token_ids": torch.full((2, 3, 4), V)}, ValueError, r"token_ids: .*\[0, 7\) or -100, got 7"),
        ({"token_ids": torch.full((2, 3, 4), -1)}, ValueError, "token_ids: .*got -1"),
        ({"token_ids": empty_meta(2, 3, 4, dtype=torch.int64)}, ValueError, "token_ids: expected device"),
        ({"rewards": torch.zeros(2, 4)}, ValueError, r"rewards: .*\[2, 3\], got \[2, 4\]"),
        ({"rewards": torch.zeros(2, 3).bool()}, TypeError, "rewards: expected dtype"),
        ({"rewards": torch.full((2, 3), NAN)}, ValueError, "rewards: expected finite"),
        ({"rewards": empty_meta(2, 3)}, ValueError, "rewards: expected device"),
        ({"scores": None}, ValueError, "scores: expected a tensor .*tawin"),
        ({"scores": torch.zeros(2, 3, 1)}, ValueError, r"scores: expected shape \[B, G\]"),
        ({"scores": torch.full((2, 3), NAN)}, ValueError, "scores: expected no NaN"),
        ({"scores": empty_meta(2, 3)}, ValueError, "scores: expected device"),
        ({"tawin": 2.0}, TypeError, "tawin: expected a TAWin, got float"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": None}, TypeError, "temperature"),
        ({"bias": torch.zeros(H)}, ValueError, "bias: expected shape"),
        ({"bias": torch.zeros(V).half()}, TypeError, "bias"),
        ({"normalize_std": None}, TypeError, "normalize_std"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"all_log_probs": None}, TypeError, "all_log_probs: expected True or False, got None"),
        ({"rows": ROWS}, ValueError, r"hidden: expected shape \[R, H\], got \[2, 3, 4, 3\]"),
        ({"rows": ROWS[0], "hidden": STATES}, ValueError, r"rows: expected shape \[B, G, L\] = \[2, 3, 4\]"),
        ({"rows": ROWS.int(), "hidden": STATES}, TypeError, "rows: expected dtype int64"),
        ({"rows": ROWS + 5, "hidden": STATES}, ValueError, r"rows: expected rows of hidden in \[0, 5\), got 5"),
        ({"rows": ROWS, "hidden": STATES, "token_ids": ROWS[0]}, ValueError, r"token_ids: expected shape \[B, G, L\]"),
        ({"normalizer": "items"}, ValueError, "normalizer: expected one of 'vocab', 'trie', got 'items'"),
        ({"normalizer": "trie"}, TypeError, "trie: expected an ItemTrie, got NoneType"),
        ({"normalizer": "trie", "trie": TRIE}, TypeError, r"nodes: expected a tensor \[B, G, L\]"),
        (
            {"normalizer": "trie", "trie": TRIE, "nodes": ROWS + 1},
            ValueError,
            "token_ids: expected a child of its node",
        ),
        ({"normalizer": "trie", "trie": TRIE, "nodes": ROWS - 1}, ValueError, "nodes: expected nodes of the trie"),
        ({"trie": TRIE}, ValueError, "trie: expected None with normalizer 'vocab', got ItemTrie"),
        ({"nodes": ROWS}, ValueError, "nodes: expected None with normalizer 'vocab', got Tensor"),
    ],
)
def test_bad_input_of_tawin_grpo_loss_is_refused_by_name(changes, error, message):
    good = {
        "hidden": torch.randn(2, 3, 4, H),
        "lm_head_weight": torch.randn(V, H),
        "token_ids": torch.zeros(2, 3, 4, dtype=torch.int64),
        "mask": torch.ones(2, 3, 4, dtype=torch.bool),
        "rewards": torch.eye(2, 3),
        "scores": torch.zeros(2, 3),
    }
    with pytest.raises(error, match=message):
        tawin_grpo_loss(**{**good, **changes})
