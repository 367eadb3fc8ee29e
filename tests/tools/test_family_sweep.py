"""A few families of each kind are right in every way of running them, or refused by name; wrong ones are found.

All families: python -m tools.family_sweep.
"""

from __future__ import annotations

import pytest
import torch

from tools import family_sweep
from tools.family_sweep import main, try_family

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*runs with its padding:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    ("family", "way"),
    [
        ("qwen2", "packed;"),
        ("gemma3_text", "packed;"),  # some layers have a window
        ("mistral", "packed;"),  # all have
        ("mixtral", "packed;"),  # experts
        ("gpt2", "packed;"),  # learnt positions
        ("deepseek_v3", "packed in training"),  # MLA: the cache is not what attention sees
        ("glm4_moe_lite", "packed in training"),
        ("jetmoe", "packed in training"),  # keys are repeated behind the cache
        ("falcon", "padded"),  # an attention of its own
    ],
)
def test_a_family_gives_what_its_own_forward_gives(family: str, way: str) -> None:
    finding = try_family(family)
    assert finding.verdict == "RIGHT", finding
    assert finding.note.startswith(way)


@pytest.mark.parametrize("family", ["deepseek_v3", "jetmoe", "gemma3_text"])
def test_under_eager_attention_too(family: str) -> None:
    finding = try_family(family, "eager")
    assert finding.verdict == "RIGHT" and finding.note.startswith("padded"), finding


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert-generation", "sees later tokens"),
        ("electra", "its LM head takes 128 numbers"),
        ("moshi", "its sliding window of 4"),
        ("dory", "it does not take a prompt and"),
        ("gemma2", "final_logit_softcapping"),
        ("qwen3_next", "linear_attention"),
    ],
)
def test_a_family_that_would_be_wrong_is_refused_by_name(family: str, reason: str) -> None:
    finding = try_family(family)
    assert finding.verdict == "REFUSED" and reason in finding.note, finding


def test_a_wrong_way_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = family_sweep.score_catalog
    monkeypatch.setattr(family_sweep, "score_catalog", lambda *arguments: plain(*arguments) + 0.01)
    assert main(["qwen2"]) == 1
    assert "WRONG" in (line := capsys.readouterr().out) and "score_catalog 1.0e-02" in line and "split" not in line
    monkeypatch.undo()
    monkeypatch.setattr(
        family_sweep, "completion_states", lambda *_: (torch.randn(3, 32), torch.zeros(3, 14, 3).long())
    )
    assert main(["qwen2"]) == 1
    assert "gradients" in capsys.readouterr().out
