"""A TRL that changed what the trainer overrides is refused when the integration is imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

pytest.importorskip("trl")
from trl import GRPOConfig, GRPOTrainer

from tawin.integrations.trl.seams import require_known_trl


def test_the_installed_trl_is_known() -> None:
    require_known_trl(GRPOTrainer, GRPOConfig, ["loss_type"])


def test_a_method_with_other_arguments_is_refused_by_name() -> None:
    class Changed(GRPOTrainer):
        def _compute_loss(self, model, inputs, scale):
            return None

    message = r"know TRL .*: expected GRPOTrainer\._compute_loss\(model, inputs\), got \(model, inputs, scale\)"
    with pytest.raises(ImportError, match=message):
        require_known_trl(Changed, GRPOConfig, [])


def test_a_method_that_is_gone_is_refused_by_name() -> None:
    with pytest.raises(ImportError, match=r"expected GRPOTrainer\._calculate_rewards, which is gone"):
        require_known_trl(object, GRPOConfig, [])


def test_an_option_that_is_gone_is_refused_by_name() -> None:
    @dataclass
    class Changed:
        loss_type: str = "grpo"

    with pytest.raises(ImportError, match=r"expected the option GRPOConfig\.delta, which is gone"):
        require_known_trl(GRPOTrainer, Changed, ["loss_type", "delta"])


def test_the_import_of_the_integration_is_what_refuses() -> None:
    code = """
import trl

class GRPOTrainer(trl.GRPOTrainer):
    def _compute_loss(self, model, batch):
        return None

trl.GRPOTrainer = GRPOTrainer
import tawin.integrations.trl
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: tawin.integrations.trl does not know TRL" in done.stderr.splitlines()[-1]
