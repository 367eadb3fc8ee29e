"""What engines make of an exported folder, as far as they run without a GPU: their tables are our trie."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from tawin import Catalog, cli, load_catalog
from tawin.config import CatalogConfig, PolicyConfig

from ...docs_pages import ROOT
from ..runs import SMALL, make_run

Tree = dict[int, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Qwen3 with semantic ids of one depth, as FlashRec asks for."""
    folder = tmp_path_factory.mktemp("hand-over")
    config = dataclasses.replace(
        SMALL,
        catalog=CatalogConfig(levels=3, codes=6, separate_shared_ids=False),
        policy=PolicyConfig(family="qwen3", hidden_size=16, layers=2, heads=2, intermediate_size=24),
    )
    make_run(folder / "RUN", config)
    cli.main(["export", str(folder / "RUN"), str(folder / "EXPORT")])
    return folder / "EXPORT"


def tree_of(catalog: Catalog) -> Tree:
    trie = catalog.trie

    def below(node: int) -> Tree:
        first, end = (int(offset) for offset in trie.child_offsets[node : node + 2])
        return {int(trie.edge_tokens[edge]): below(edge + 1) for edge in range(first, end)}

    return below(0)


def tables(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs what docs/SERVING.md has for FlashRec and vLLM-GR, inside the folder."""
    monkeypatch.chdir(exported)
    text = (ROOT / "docs" / "SERVING.md").read_text(encoding="utf-8")
    for snippet in re.findall(r"```python\n(.*?)```", text[text.index("## vLLM, SGLang, FlashRec") :], re.DOTALL):
        exec(compile(snippet, "SERVING.md", "exec"), {})


def test_vllm_grs_catalogue_of_token_names_is_the_trie(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as its `Catalog.load` does: a list of names a sequence, to ids by the tokenizer, into nested dicts."""
    tables(exported, monkeypatch)
    tokenizer, tree = AutoTokenizer.from_pretrained(exported), {}
    for names in json.loads((exported / "catalog-names.json").read_text()):
        node: Tree = tree
        for token in tokenizer.convert_tokens_to_ids(names):
            node = node.setdefault(token, {})
    assert tree == tree_of(load_catalog(exported))


def test_flashrec_reads_the_config_and_its_trie_is_ours(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(exported, monkeypatch)
    trie_of = pytest.importorskip("flashrec.search.trie", reason="pip install --no-deps flashrec")
    from flashrec.models.weight import load_hf_config

    catalog = load_catalog(exported)
    sizes = [len({codes[level] for codes in catalog.semantic_ids or []}) for level in range(3)]
    first, last = int(catalog.token_ids.min()), int(catalog.token_ids.max())
    found = trie_of.build_beam_valid_path(
        sid_file=str(exported / "sids.json"), codebook_sizes=sizes, special_token_ids=list(range(first, last + 1))
    )

    def below(path: tuple[int, ...]) -> Tree:
        return {token: below((*path, token)) for token in found.children.get(path, ())}

    assert below(()) == tree_of(catalog)
    assert (
        load_hf_config(str(exported)).rope_theta == AutoConfig.from_pretrained(exported).rope_parameters["rope_theta"]
    )


def test_the_tokens_of_built_ids_are_one_run_a_level_with_a_token_for_every_code(exported: Path) -> None:
    """So START:END/SIZE,SIZE,SIZE says it all."""
    catalog = load_catalog(exported)
    start = int(catalog.token_ids.min())
    for level in range(3):
        codes = {own[level] for own in catalog.semantic_ids or []}
        assert codes == set(range(len(codes)))
        assert sorted(set(catalog.token_ids[:, level].tolist())) == list(range(start, start + len(codes)))
        start += len(codes)


def test_engines_that_look_for_rope_theta_at_the_top_of_the_config_find_it(exported: Path) -> None:
    values = json.loads((exported / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 10_000.0
