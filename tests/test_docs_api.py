"""docs/api says what the docstrings say, and the docstrings say enough."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
REFERS = re.compile(r"The other arguments|[Aa]rguments as ")  # "..., the result and the errors: as in `grpo_loss`"


@pytest.fixture(scope="module")
def build_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def public_functions(build_api: ModuleType) -> dict[str, Any]:
    found = {}
    for _, modules in build_api.API_PAGES.values():
        for path in modules:
            module = build_api.load(path)
            for name in build_api.public_names(module):
                what = build_api.resolve(name, module.members[name])
                if what.is_function:
                    found[f"{path}.{name}"] = what
                elif what.is_class:
                    own = (m for n, m in what.members.items() if m.is_function and not n.startswith("_"))
                    found |= {f"{path}.{name}.{member.name}": member for member in own}
    return found


def test_the_pages_are_as_the_docstrings_say(build_api: ModuleType) -> None:
    for name, text in build_api.pages().items():
        committed = (build_api.PAGES / name).read_text(encoding="utf-8")
        assert committed == text, f"docs/api/{name} is stale; run: python docs/build_api.py"
    assert {path.name for path in build_api.PAGES.glob("*.md")} == set(build_api.pages())


def test_every_public_function_says_what_it_does_and_what_its_arguments_are(public_functions: dict[str, Any]) -> None:
    assert len(public_functions) > 30
    for name, function in public_functions.items():
        text = function.docstring.value if function.docstring else ""
        assert text, f"{name} has no docstring"
        arguments = [p.name for p in function.parameters if p.name not in ("self", "cls", "_")]
        unnamed = [argument for argument in arguments if not re.search(rf"\b{argument}\b", text)]
        if len(arguments) > 2 and not REFERS.search(text):
            assert not unnamed, f"{name} does not say what {unnamed} are"


def test_every_option_is_described(build_api: ModuleType) -> None:
    rows = [line for line in build_api.options_page().splitlines() if line.startswith("| `--")]
    assert len(rows) > 70
    for row in rows:
        assert not row.endswith("|  |"), f"no docstring in tawin/config: {row}"


def test_items_of_one_line_and_of_sections_become_a_list(build_api: ModuleType) -> None:
    text = "Does it.\n\nhidden: [B, H],\n    fp32. bias: [V].\nReturns *one*.\n\nRaises:\n    ValueError: if `a*b` < 0."
    assert build_api.markdown(text, ("hidden", "bias")).split("\n") == [
        *("", "Does it.", "", "", "* `hidden`: [B, H], fp32.", "* `bias`: [V].", "", r"Returns \*one\*.", "", ""),
        *("**Raises**", "", "* `ValueError`: if `a*b` &lt; 0."),
    ]
