"""An exported folder is plain Hugging Face, and the code in its README ranks items as beam_search does."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tawin_kernels import ItemTrie
from transformers import AutoModelForCausalLM, AutoTokenizer

from tawin import beam_search, cli
from tawin.catalog.catalog import Catalog
from tawin.config import CatalogConfig, Config, PromptConfig
from tawin.serve.export import readme
from tawin.serve.load import load_serving

from ..runs import SMALL, make_run

GUIDE = Path(__file__).parents[3] / "docs" / "SERVING.md"
# fp32 log-probs summed over a few tokens; generate pads and batches differently, so the last digits differ.
TOLERANCE = 2e-4
TITLES = dataclasses.replace(SMALL, catalog=CatalogConfig(item_tokens="title"))
RERE = dataclasses.replace(TITLES, prompt=PromptConfig("rere"))
BY_TRIE = dataclasses.replace(SMALL, evaluation=dataclasses.replace(SMALL.evaluation, normalizer="trie"))


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder / "run")
    cli.main(["export", str(folder / "run"), str(folder / "served")])
    return folder / "served"


def test_an_exported_folder_holds_what_its_readme_says(exported: Path) -> None:
    named = set(re.findall(r"`([a-z_]+\.(?:json|safetensors|parquet))`", readme()))
    assert named - {"sid2pid.json"} <= {path.name for path in exported.iterdir()}  # whose ids have two codes
    run = exported.parent / "run"
    assert (exported / "model.safetensors").read_bytes() == (run / "checkpoints/grpo/model.safetensors").read_bytes()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    trie, catalog = ItemTrie.load(exported / "trie.safetensors"), Catalog.load(exported)
    assert torch.equal(trie.edge_tokens, catalog.trie.edge_tokens)
    assert torch.equal(trie.item_ids, catalog.trie.item_ids)


def test_the_guide_has_the_code_of_the_readme() -> None:
    assert snippet(readme()) in GUIDE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "config", [SMALL, TITLES, RERE, BY_TRIE], ids=["semantic ids", "titles", "template", "trie normalizer"]
)
def test_plain_transformers_with_the_trie_ranks_as_beam_search(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", config)
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "served")])
    served = load_serving(tmp_path / "served")
    if config is SMALL:  # the hard case: some items have a token more than others, and none has an end token
        assert len(served.catalog.trie.leaf_depths) == 2
    monkeypatch.chdir(tmp_path / "served")
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(compile(snippet(readme()), "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("[(")

    ids = served.catalog.item_ids
    histories = [ids[[3, 1, 9, 2, 7, 5]].tolist(), ids[[4]].tolist(), ids[[8, 8]].tolist(), []]
    found = names["recommend"](histories)
    dense = [[served.catalog.index_of(item) for item in history[-4:]] for history in histories]
    prompts = served.catalog.encode_histories(dense)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "served").eval()
    expected = beam_search(model, *prompts, served.catalog.trie, 12, normalizer=config.evaluation.normalizer)
    for row, pairs in enumerate(found):
        present = expected.item_ids[row] >= 0
        assert [item for item, _ in pairs] == ids[expected.item_ids[row][present]].tolist()
        assert [score for _, score in pairs] == pytest.approx(expected.scores[row][present].tolist(), abs=TOLERANCE)
        assert len(pairs) > 5


def test_a_stage_can_be_chosen_and_is_remembered(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "new" / "served"), "--stage", "sft"])
    served, trained = load_serving(tmp_path / "new" / "served"), load_serving(tmp_path / "run", "sft")
    assert served.options.stage == "sft" and served.options.max_history == 4
    assert served.options.evaluation == dataclasses.replace(trained.options.evaluation, batch_size=64)
    weights = zip(served.model.state_dict().values(), trained.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    with pytest.raises(ValueError, match="--stage grpo: expected sft"):
        load_serving(tmp_path / "new" / "served", "grpo")


def test_an_empty_folder_will_do_and_one_with_files_is_refused(exported: Path, tmp_path: Path) -> None:
    run = str(exported.parent / "run")
    (tmp_path / "empty").mkdir()
    cli.main(["export", run, str(tmp_path / "empty")])
    before = sorted(path.name for path in (tmp_path / "empty").iterdir())
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        cli.main(["export", run, str(tmp_path / "empty")])
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == before
    with pytest.raises(SystemExit, match="got a file"):
        cli.main(["export", run, str(tmp_path / "empty" / "README.md")])


def test_a_stage_without_a_model_and_a_folder_that_is_no_run_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"config\.yaml"):
        cli.main(["export", str(exported), str(tmp_path / "served")])
    run = make_run(tmp_path / "run")
    os.rename(run.checkpoints / "grpo", run.checkpoints / "elsewhere")
    with pytest.raises(SystemExit, match="expected a finished grpo stage"):
        cli.main(["export", str(run.path), str(tmp_path / "served")])
    assert not (tmp_path / "served").exists()


def test_an_export_that_fails_leaves_nothing_in_its_place(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(ItemTrie, "save", fail)
    with pytest.raises(SystemExit, match="no space left"):
        cli.main(["export", str(exported.parent / "run"), str(tmp_path / "served")])
    assert not (tmp_path / "served").exists()


def test_a_damaged_serving_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"serving\.json: expected the file that `tawin export` writes"):
        load_serving(tmp_path)
