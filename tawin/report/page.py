"""The report of one or several runs: a self-contained HTML page and its figures as PNG files.

It reads what a run folder holds so far, so it also works on a run that is still being written. Runs whose configs are
equal but for the seed are one group: mean and sample standard deviation over its runs. It knows nothing of models and
data. Whatever comes from outside (folder names, config, results) is text here: escaped in the page.
"""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..config import KS
from ..config.files import dump_yaml
from ..evaluate.baselines import LABELS
from ..run.atomic import write_atomically
from ..run.records import Group, look_up, read_runs
from .change import change_of
from .figures import DARK, FIGURES, LIGHT, png

_MARK = '<meta name="generator" content="tawin">'
NOTE = (
    "Means over the evaluated users. ±: sample standard deviation over runs that differ in nothing but their seed. "
    "Change: of the means, over SFT. With one target per user WPAUC@K equals Recall@K (arXiv 2604.22504, Lemma 3.5)."
)
STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #57606a; --line: #d8dee4; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #d5dae0; --soft: #98a2ad; --line: #31373e; --page: #15181c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, figcaption { color: var(--soft); margin: .4rem 0; max-width: 60rem; }
.headline { color: var(--ink); font-size: 1.15rem; margin: 1rem 0; }
.figures { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; overflow-wrap: normal; }
thead th { color: var(--soft); font-weight: 500; } tbody { border-top: 1px solid var(--line); }
summary { cursor: pointer; margin: .5rem 0; } pre { overflow-x: auto; font-size: .85rem; }
"""


def _table(header: Sequence[str], blocks: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """Rows in blocks, each block under one heading in the first column. All text is escaped here."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = ""
    for heading, rows in blocks:
        first = f'<th scope="rowgroup" rowspan="{len(rows)}">{escape(heading)}</th>'
        cells = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
        body += f"<tbody><tr>{first}{'</tr><tr>'.join(cells)}</tr></tbody>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _headline(groups: list[Group]) -> str:
    """The first sentence of each group: what RL changed of the metric that chose its checkpoints."""
    lines = ""
    for group in groups:
        metric = group.config.evaluation.select
        name = metric.replace("recall", "Recall").replace("ndcg", "NDCG")
        change = change_of(group, metric)
        if change is None:
            said = f"test {name}: RL has not been evaluated yet"
        else:
            said = f"RL changed test {name} by {change.difference:+.4f}, from {change.before:.4f} to {change.after:.4f}"
            if change.users is None:
                said += ", without an interval: no ranks by user were kept"
            else:
                low, high = change.difference - change.error, change.difference + change.error
                said += f"; 95 % interval over {change.users:,} users {low:+.4f} to {high:+.4f}: {change.verdict}"
        said = f"{group.label}: {said}" if len(groups) > 1 else said
        lines += f'<p class="headline">{escape(said)}.</p>'
    return lines


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _runs_table(groups: list[Group]) -> str:
    blocks = []
    for run in (run for group in groups for run in group.runs):
        users, seconds = (run.results.get(name) or {} for name in ("users", "seconds"))
        last = f"{run.lines[-1]['stage']} step {run.lines[-1]['step']}" if run.lines else "nothing logged yet"
        cells = [
            str(run.config.seed),
            str(look_up(run.results, "dataset", "name") or "?"),
            "complete" if "grpo" in run.results else f"not complete: {last}",
            ", ".join(f"{name} {count:,}" for name, count in users.items()) or "none yet",
            ", ".join(f"{name.replace('_', ' ')} {value:,.1f}" for name, value in seconds.items()) or "none yet",
        ]
        blocks.append((run.name, [cells]))
    return _table(["run", "seed", "data", "state", "users evaluated", "seconds by stage"], blocks)


def _figure(values: list[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}" if values else "-"


def _results_table(groups: list[Group], split: str) -> str:
    """A block a metric, a row a group: SFT, GRPO and the change of the means."""
    several = len(groups) > 1
    found = [look_up(run.results, stage, split) or {} for g in groups for run in g.runs for stage in ("sft", "grpo")]
    blocks = []
    for name in dict.fromkeys(name for figures in found for name in figures):
        rows = []
        for group in groups:
            before, after = (group.values(stage, split, name) for stage in ("sft", "grpo"))
            known = before and after and fmean(before) > 0
            change = f"{100 * (fmean(after) / fmean(before) - 1):+.1f} %" if known else "-"
            rows.append([*[group.label] * several, _figure(before), _figure(after), change])
        blocks.append((name, rows))
    return _table(["metric", *["run"] * several, "SFT", "GRPO", "change"], blocks)


def _baselines_table(groups: list[Group]) -> str:
    """Test figures of what needs no training and, under them, of the model; "" where no run has any."""
    names = dict.fromkeys(name for g in groups for run in g.runs for name in run.results.get("baselines") or {})
    if not names:
        return ""
    rows: list[tuple[str, tuple[str, ...]]] = [(LABELS.get(name, name), ("baselines", name)) for name in names]
    rows += [("SFT", ("sft",)), ("after GRPO", ("grpo",))]
    blocks = []
    for group in groups:
        cells = [[name, *(_figure(group.values(*path, "test", f"recall@{k}")) for k in KS)] for name, path in rows]
        blocks.append((group.label, cells))
    table = _table(["run", "", *(f"recall@{k}" for k in KS)], blocks)
    return f"<h2>Your model against what needs no training</h2>{table}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return flat


def _configs(groups: list[Group]) -> str:
    """The options in which the groups differ as a table, then the data and all options of each group, folded."""
    flat = [_flat(dataclasses.asdict(group.config)) for group in groups]
    differing = [name for name in flat[0] if name != "seed" and len({values[name] for values in flat}) > 1]
    rows = [(name, [[values[name] for values in flat]]) for name in differing]
    content = _table(["option", *(group.label for group in groups)], rows) if rows else ""
    for group in groups:
        data = _flat(group.runs[0].results.get("dataset") or {})
        text = "".join(f"# data: {name} {value}\n" for name, value in data.items()) + dump_yaml(group.config)
        content += _folded(group.label, f"<pre>{escape(text)}</pre>")
    return content


def _embedded(caption: str, light: bytes, dark: bytes) -> str:
    """A figure with both of its images inside the page: the reader's colour scheme picks one."""
    light_url, dark_url = (f"data:image/png;base64,{b64encode(png).decode('ascii')}" for png in (light, dark))
    text = escape(caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark_url}">'
        f'<img src="{light_url}" alt="{text}"></picture><figcaption>{text}</figcaption></figure>\n'
    )


def write_report(run_folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write `report.html` and its figures as PNG files; returns the path of the page.

    The page needs nothing but itself: images and style are inside, it loads nothing and runs no script.

    Args:
        run_folders: run folders, finished or still being written; one given twice counts once.
        out: folder for the page and the figures, made where it is missing; None: the first run's.

    Raises:
        ValueError: no folder, or one that is no run; metrics.jsonl damaged elsewhere than at its end; `out` is a file.
    """
    folders = list(dict.fromkeys(Path(folder).resolve() for folder in run_folders))
    if not folders:
        raise ValueError("run_folders: expected at least one run folder, got none")
    out = folders[0] if out is None else Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {out}")
    page_path = out / "report.html"
    if out not in folders and page_path.exists() and _MARK not in page_path.read_text("utf-8", errors="replace"):
        raise ValueError(f"out: {out} holds a report.html of another kind; choose another folder")
    groups = read_runs(folders)
    out.mkdir(parents=True, exist_ok=True)
    figures = ""
    for file, (caption, draw) in FIGURES.items():
        light, dark = (png(draw, groups, theme) for theme in (LIGHT, DARK))
        if light:
            write_atomically(out / file, light)
            figures += _embedded(caption, light, dark)
    title = escape(f"tawin: {groups[0].label if len(groups) == 1 else f'{len(folders)} runs'}")
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{_MARK}<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1>{_headline(groups)}
{_baselines_table(groups)}
<h2>Figures</h2><div class="figures">{figures}</div>
<h2>All figures</h2><p>{escape(NOTE)}</p>
{_folded("Test", _results_table(groups, "test"))}
{_folded("Valid", _results_table(groups, "valid"))}
<h2>Runs, data and options</h2>{_runs_table(groups)}
{_configs(groups)}
</body></html>
"""
    write_atomically(page_path, page)
    return page_path
