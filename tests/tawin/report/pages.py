"""Report pages taken apart, and small run folders in the true format to make them of."""

import dataclasses
from base64 import b64decode
from html.parser import HTMLParser

from tawin.config import KS, Config
from tawin.run.folder import RunFolder

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed in the wrong place or never."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.rows, self._open = [], [], "", [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def images(self):
        """The images by colour scheme, in the order of the page."""
        prefix = "data:image/png;base64,"
        found = {"light": [], "dark": []}
        for tag, name, value in self.attributes:
            if (tag, name) in (("img", "src"), ("source", "srcset")):
                assert value.startswith(prefix)
                found["light" if tag == "img" else "dark"].append(b64decode(value[len(prefix) :], validate=True))
        return found


def figures_at(recall):
    """Every metric of an evaluation, all from one number."""
    return {f"{name}@{k}": recall * k / 10 for name in ("recall", "ndcg", "wpauc") for k in KS}


def make_run(folder, *, before=0.2, after=0.25, steps=40, best=None, dataset="synthetic", **options):
    """A run folder as the main job writes it; valid recall@10 is `before`, then `after` (None: no GRPO results yet)."""
    run = RunFolder.create(folder, Config(**options))
    for step in range(1, steps + 1):
        run.log({"stage": "sft", "step": step, "seconds": step / 10, "loss": 5.0 / step, "learning_rate": 1e-3})
    run.log({"stage": "sft", "step": steps, "seconds": 4.2, "valid": figures_at(before)})
    run.log({"stage": "grpo", "step": 0, "seconds": 0.1, "valid": figures_at(before)})
    for step in range(1, steps + 1):
        shares = {"reward": 0.01 + step / 4000, "hit_share": 0.2 + step / 200, "live_share": 0.2 + step / 250}
        run.log({"stage": "grpo", "step": step, "seconds": step / 5, "loss": 0.0, **shares})
    run.log({"stage": "grpo", "step": steps, "seconds": 8.3, "valid": figures_at(after or before)})
    run.add_results(
        config=dataclasses.asdict(run.config),
        dataset={"name": dataset, "users": 2000, "repeat_share": 0.271},
        best_achievable=best,
        sft={"valid": figures_at(before), "test": figures_at(before / 2)},
        seconds={"sft": 12.345, "sft_evaluation": 1234.5},
        users={"valid": 1000, "test": 2345},
    )
    if after is not None:
        run.add_results(grpo={"valid": figures_at(after), "test": figures_at(after / 2)})
    return folder
