"""Gradients of confident tokens: nowhere worse than those of a one-hot that is subtracted before rounding."""

from __future__ import annotations

import pytest
import torch
from tawin_kernels.launch import INTERPRETED

from tools.confident_tokens import DTYPES, SHARING, case_of, compared, errors_of, exact, in_one_pass, is_good

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.skipif(not (INTERPRETED or DEVICE.type == "cuda"), reason="needs the interpreter or a GPU")


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("p", [0.99, 0.9999])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_as_exact_row_by_row_as_with_the_one_hot_subtracted_first(dtype, p, sharing):
    case = case_of(p, dtype, sharing, DEVICE)
    errors, others = compared(case, frozen=False)
    assert is_good(errors, others)
    assert is_good(errors_of((in_one_pass(case), None), exact(case)), others)


def test_the_cases_have_the_probabilities_that_they_say():
    for sharing in SHARING:
        case = case_of(0.99, torch.float16, sharing, DEVICE)
        p = (case.hidden.double() @ case.weight.double().T).softmax(-1)[range(12), range(12)]
        expected = torch.full_like(p, 0.495 if sharing == "halves" else 0.99)
        # fp16 rounds the states, and with them logits of size 10 by about 1e-3 of 10.
        torch.testing.assert_close(p, expected, rtol=5e-3, atol=0)
