"""Writes docs/api/*.md from docstrings: `python docs/build_api.py`; with --check it names the pages that are stale.

The public API comes from the sources' text, read by griffe and not run; the options come from `tawin.config`. What a
page says is said in the sources alone: whoever wants another sentence changes the docstring.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import griffe

from tawin.config import Config
from tawin.config.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
SOURCES = [ROOT / "kernels", ROOT]
WIDTH = 120

# Page -> title and the modules whose `__all__` (or public names) it holds.
API_PAGES = {
    "tawin_kernels.md": ("tawin_kernels", ("tawin_kernels",)),
    "tawin.md": ("tawin", ("tawin", "tawin.metrics")),
    "integrations.md": ("tawin.integrations", ("tawin.integrations.trl", "tawin.integrations.verl")),
}
HEADER = "<!-- Made by `python docs/build_api.py` from the docstrings; change those. -->\n"


def pages() -> dict[str, str]:
    """File name -> text of every page."""
    found = {name: api_page(title, modules) for name, (title, modules) in API_PAGES.items()}
    found["options.md"] = options_page()
    return found


# The public API


def api_page(title: str, modules: tuple[str, ...]) -> str:
    parts = [f"# {title}", HEADER]
    for path in modules:
        module = load(path)
        parts += [f"## `{path}`"] if len(modules) > 1 else []
        parts.append(markdown(module.docstring.value if module.docstring else "", ()))
        for name in public_names(module):
            parts += describe(name, resolve(name, module.members[name]))
    text = "\n\n".join(part for part in parts if part) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def load(path: str) -> Any:
    """A module's tree. Aliases are followed within our own packages alone."""
    package, _, below = path.partition(".")
    tree = load_package(package)
    return tree[below] if below else tree


@cache
def load_package(package: str) -> Any:
    return griffe.load(package, search_paths=SOURCES, allow_inspection=False)


def public_names(module: Any) -> list[str]:
    """`__all__`, or what a module without it defines in public: functions and classes, in the order of the source."""
    if module.exports is not None:
        return [str(name) for name in module.exports]
    own = (member for member in module.members.values() if not member.is_alias and not member.name.startswith("_"))
    return [member.name for member in own if member.is_function or member.is_class]


def resolve(name: str, member: Any) -> Any:
    """What a public name stands for; where a module has the name of its function, the function."""
    target = member.final_target if member.is_alias else member
    return target.members[name] if target.is_module and name in target.members else target


def describe(name: str, what: Any) -> list[str]:
    """The parts of one public name's entry."""
    if what.is_module:
        if any(what.path in modules for _, modules in API_PAGES.values()):
            return []  # it has a part of its own
        first = what.docstring.value if what.docstring else ""
        return [f"### `{name}`", f"A module, {link(what)}.", markdown(first, ())]
    if what.is_class:
        return [f"### `{name}`", link(what), *class_parts(what)]
    return [f"### `{name}`", link(what), f"```py\n{signature(what)}\n```", docstring(what)]


def class_parts(cls: Any) -> list[str]:
    names = tuple(cls.members)
    parts = [markdown(cls.docstring.value if cls.docstring else "", names)]
    members = [m for n, m in cls.members.items() if not n.startswith("_") and not m.is_alias]
    fields = [m for m in members if m.is_attribute and not m.lines[0].lstrip().startswith("self.")]
    if fields:
        parts.append("\n".join(f"* {field_line(field)}" for field in fields))
    for method in (m for m in members if m.is_function):
        parts += [f"**`{cls.name}.{method.name}`**", f"```py\n{signature(method)}\n```", docstring(method)]
    return parts


def field_line(field: Any) -> str:
    """A field, with its docstring or the comment behind it; a property with its docstring."""
    default = f" = {field.value}" if field.value is not None else ""
    comment = re.search(r"  # (.*)$", field.lines[0])
    text = " ".join(field.docstring.value.split()) if field.docstring else comment.group(1) if comment else ""
    return f"`{field.name}: {field.annotation}{default}`" + (f": {escape(text)}" if text else "")


def source_of(what: Any) -> str:
    return Path(what.filepath).resolve().relative_to(ROOT).as_posix()


def link(what: Any) -> str:
    return f"[{source_of(what)}](../../{source_of(what)})"


def signature(function: Any) -> str:
    """As it stands in the source, without its body."""
    source = textwrap.dedent("\n".join(function.lines))
    kept = [line for line in source.splitlines() if not line.startswith("@") or line == "@classmethod"]
    text = re.sub(r"  # noqa.*", "", "\n".join(kept))
    return text[: re.search(r":[ ]*$", text, re.MULTILINE).start()]  # type: ignore[union-attr]


def docstring(function: Any) -> str:
    parameters = tuple(p.name for p in function.parameters) if function.is_function else ()
    return markdown(function.docstring.value if function.docstring else "", parameters)


# Docstrings to Markdown

SECTIONS = ("Args:", "Returns:", "Raises:")


def markdown(text: str, names: tuple[str, ...]) -> str:
    """A docstring as Markdown: "name: ..." of one of `names`, or within a section, becomes an item of a list."""
    parts: list[str] = []
    if not text:
        return ""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        section = lines[0].strip() if lines[0].strip() in SECTIONS else None
        if section:
            lines = textwrap.dedent("\n".join(lines[1:])).splitlines()
            parts.append(f"**{section.removesuffix(':')}**")
        elif lines[0].startswith("    "):  # a formula
            parts.append("```text\n" + textwrap.dedent("\n".join(lines)) + "\n```")
            continue
        parts.append("\n".join(wrapped(unit) for unit in units(lines, names, section)))
    return "\n\n".join(parts)


def units(lines: list[str], names: tuple[str, ...], section: str | None) -> Iterator[tuple[str, str]]:
    """(bullet or "", text) of the paragraphs and items that a block's lines make."""
    joined: list[str] = []
    for line in lines:
        starts = bool(re.match(r"[*-] ", line)) or is_item(line, names, section)
        # A sentence that is not indented goes on with a paragraph, and ends a list.
        goes_on = line.startswith(" ") or (not starts and bool(joined) and not is_item(joined[-1], names, section))
        if joined and goes_on:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.strip())
    for text in joined:
        if is_item(text, names, section):
            yield from (("* ", part) for part in split_items(text, names))
        else:
            yield ("", text) if not re.match(r"[*-] ", text) else ("* ", text[2:])


def is_item(text: str, names: tuple[str, ...], section: str | None) -> bool:
    found = re.match(r"(\w+(?:, \w+)*): ", text)
    return bool(found) and (section in ("Args:", "Raises:") or set(found.group(1).split(", ")) <= set(names))


def split_items(text: str, names: tuple[str, ...]) -> list[str]:
    """Two items on one line, "a: ... b: ...", one by one."""
    marked = re.sub(rf"(?<=\. )({'|'.join(names)}): ", r"\n\1: ", text) if names else text
    parts = [part.strip() for part in marked.split("\n")]
    return [re.sub(r"^(\w+(?:, \w+)*): ", lambda m: f"`{m.group(1)}`: ", part) for part in parts]


def wrapped(unit: tuple[str, str]) -> str:
    bullet, text = unit
    body = textwrap.fill(
        escape(text), WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * len(bullet),
        initial_indent=bullet,
    )  # fmt: skip
    return body if bullet else f"\n{body}\n"


def escape(text: str) -> str:
    """Markdown's own signs outside of `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("*", r"\*").replace("<", "&lt;") for p in parts)


# The options

OPTIONS_INTRODUCTION = f"""# Options of tawin train

{HEADER}
Each is an option of the command line (`--grpo.learning-rate 1e-5`) and a field of the YAML file that `--config` takes
(`grpo: {{learning_rate: 1e-5}}`); what is on or off is `--grpo.normalize-std` or `--grpo.no-normalize-std`.
The preset comes first (`--preset`, `demo` where none is named), then the file, then the command line; the later one
wins. Besides: `--preset`, `--config`, `--out`, `--resume` and `--dry-run`, as `tawin train --help` says.
"""


def options_page() -> str:
    """Every option of `tawin train`: the field docstrings of tawin.config, its defaults and what presets change."""
    package = load("tawin.config")
    trees = dict(package.members)
    for module in package.modules.values():
        trees |= module.classes
    return OPTIONS_INTRODUCTION + "".join(section_text(trees, "", Config()))


def section_text(trees: dict[str, Any], prefix: str, config: Any) -> Iterator[str]:
    """One section of the config as a table, then the sections below it."""
    rows, below = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            below.append((f"{prefix}{field.name}.", value))
            continue
        name = f"{prefix}{field.name}"
        changed = "; ".join(
            f"{preset}: {shown(of)}" for preset, c in PRESETS.items() if (of := value_at(c, name)) != value
        )
        cells = (f"`--{name.replace('_', '-')}`", choices(config, field.name), shown(value), changed)
        rows.append(f"| {' | '.join(cells)} | {field_docstring(trees, type(config), field.name)} |\n")
    title = f"`{prefix.removesuffix('.')}`" if prefix else "The run"
    yield f"\n## {title}\n\n{escape(trees[type(config).__name__].docstring.value)}\n\n"
    yield "| option | takes | default | presets | |\n|---|---|---|---|---|\n"
    yield from rows
    for name, value in below:
        yield from section_text(trees, name, value)


def value_at(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def shown(value: Any) -> str:
    return f"`{value}`" if value != "" else "empty"


def choices(config: Any, name: str) -> str:
    hint = get_type_hints(type(config))[name]
    if get_origin(hint) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(hint))
    return str(hint.__name__ if isinstance(hint, type) else hint).replace(" | ", " or ")


def field_docstring(trees: dict[str, Any], cls: type, name: str) -> str:
    """A field's docstring, from the class or the nearest base that has one."""
    for owner in cls.__mro__:
        member = trees[owner.__name__].members.get(name) if owner.__name__ in trees else None
        if member is not None and member.docstring:
            return escape(" ".join(member.docstring.value.split())).replace("|", r"\|")
    return ""


def main(arguments: list[str]) -> int:
    texts = pages()
    if arguments == ["--check"]:
        stale = [
            n for n, t in texts.items() if not (PAGES / n).exists() or (PAGES / n).read_text(encoding="utf-8") != t
        ]
        if stale:
            print(f"docs/api: {', '.join(stale)} not as the docstrings say; run: python docs/build_api.py")
        return 1 if stale else 0
    if arguments:
        print(f"expected --check or nothing, got {arguments}", file=sys.stderr)
        return 2
    PAGES.mkdir(exist_ok=True)
    for name, text in texts.items():
        (PAGES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
