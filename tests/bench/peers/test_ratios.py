"""The peers' ways give our answers, and the benchmarks' own checks can tell when they do not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tawin_kernels import ItemTrie, linear_log_probs

from bench import foundation, measure
from bench.cases.ratios import (
    PolicyShape,
    beam_search_case,
    compare_beams,
    compare_gradients,
    compare_log_probs,
    draw_semantic_ids,
    policy_forward_case,
)
from bench.measure import machine_facts, write_device_results, write_results
from bench.peers import PrefixTable, generate_beam_search, repeated_prompt_log_probs
from tawin import beam_search
from tawin.model.backbone import backbone

from ...tawin.models import FAMILIES, completion_hidden, ragged_prompts, tiny_model

TINY = PolicyShape(text_tokens=40, hidden_size=16, layers=2, heads=2, intermediate_size=24)
RAGGED = [[5], [5, 6], [7, 8, 9], [7, 8], [5, 6], [10, 11, 12], [13, 14]]
EVEN = [[5, 6], [5, 7], [8, 9], [5, 6], [10, 11]]
# fp32 log-probs of scaled-up weights, summed over a few tokens in batches of another shape.
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.mark.parametrize(("items", "end_token"), [(RAGGED, 2), (EVEN, None)])
@pytest.mark.parametrize("width", [2, 4, 12])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_generate_finds_the_items_and_scores_of_beam_search(
    items: list[list[int]], end_token: int | None, width: int, penalty: float
) -> None:
    model = tiny_model("qwen2", seed=width)
    input_ids, mask = ragged_prompts(4, 5)
    trie = ItemTrie.from_sequences(items, end_token=end_token)
    table = PrefixTable.from_sequences(items, end_token=end_token)
    ours = beam_search(model, input_ids, mask, trie, width, length_penalty=penalty)
    peer = generate_beam_search(model, input_ids, mask, table, width, length_penalty=penalty)
    assert torch.equal(ours.item_ids, peer.item_ids)
    torch.testing.assert_close(ours.scores, peer.scores, **TOLERANCE)


def test_items_of_several_lengths_need_an_end_token() -> None:
    with pytest.raises(ValueError, match="end_token"):
        PrefixTable.from_sequences(RAGGED)


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_prompts_give_our_log_probs_and_gradients(family: str) -> None:
    input_ids, mask = ragged_prompts(2, 5)
    token_ids = torch.randint(3, 40, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    token_ids[0, 1, 2:] = -100
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    results = []
    for shared in (True, False):
        model = tiny_model(family)
        if shared:
            parts = backbone(model)
            hidden = completion_hidden(parts, input_ids, mask, token_ids)
            log_probs = linear_log_probs(hidden, parts.weight, token_ids)
        else:
            log_probs = repeated_prompt_log_probs(model, input_ids, mask, token_ids)
        (log_probs * weights).sum().backward()
        results.append((log_probs.detach(), [p.grad for p in model.parameters()]))
    (ours, our_gradients), (peer, peer_gradients) = results
    torch.testing.assert_close(ours, peer, **TOLERANCE)
    for got, expected in zip(our_gradients, peer_gradients, strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, atol=1e-4 * scale, rtol=1e-3)


def test_the_cases_check_themselves() -> None:
    assert "items the same" in beam_search_case(prompts=2, prompt_length=6, beam_width=4, model_shape=TINY).check()
    case = policy_forward_case(prompts=2, prompt_length=6, group_size=3, completion_length=3, model_shape=TINY)
    assert "gradients within" in case.check()


def test_a_wrong_answer_is_told() -> None:
    items, scores = torch.tensor([[1, 2, 3]]), torch.tensor([[-1.0, -2.0, -3.0]])
    with pytest.raises(AssertionError, match="scores differ"):
        compare_beams(items, scores, items, scores - 0.1)
    with pytest.raises(AssertionError, match="items differ"):
        compare_beams(items, scores, torch.tensor([[2, 1, 3]]), scores)
    with pytest.raises(AssertionError, match="found fewer"):
        compare_beams(items, scores, items, torch.tensor([[-1.0, -2.0, -torch.inf]]))
    with pytest.raises(AssertionError, match="log-probs differ"):
        compare_log_probs(scores, scores + 1e-3)
    with pytest.raises(AssertionError, match="gradients differ"):
        compare_gradients({"w": torch.ones(3)}, {"w": torch.ones(3) * 1.01})
    with pytest.raises(AssertionError, match="no gradient"):
        compare_gradients({"w": None}, {"w": torch.ones(3)})


def test_items_that_tie_may_swap() -> None:
    scores = torch.tensor([[-1.0, -1.0, -3.0]])
    compare_beams(torch.tensor([[1, 2, 3]]), scores, torch.tensor([[2, 1, 3]]), scores)


def test_the_drawn_catalogue_has_the_shape_that_it_says() -> None:
    ids = torch.from_numpy(draw_semantic_ids())
    assert ids.shape == (3686, 3) and int(ids.max()) < 256
    assert [len(ids[:, :depth].unique(dim=0)) for depth in (1, 2, 3)] == [48, 2295, 3670]


def test_figures_are_written_once_and_never_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = policy_forward_case(prompts=1, prompt_length=4, group_size=2, completion_length=2, model_shape=TINY)
    measurement = foundation.measure(case, rounds=1)
    figures = foundation.as_json([measurement], machine_facts(torch.device("cpu")))
    path = write_device_results(figures, tmp_path, "foundation")
    assert re.fullmatch(r"foundation-[a-z0-9-]+-\d{4}-\d\d-\d\dT\d{6}Z\.json", path.name)
    assert json.loads(path.read_text())["cases"][0]["our_seconds"] == measurement.ours
    assert len(measurement.ours) == 3 * len(measurement.peer) == 3
    assert case.name in foundation.table([measurement])
    monkeypatch.setattr(measure, "time_stamp", lambda: "now")
    write_results({}, tmp_path, "twice")
    with pytest.raises(FileExistsError):
        write_results({}, tmp_path, "twice")
