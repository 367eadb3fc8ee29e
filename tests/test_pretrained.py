"""The main job on a pretrained model: a folder goes the way that a hub name goes, with prompts, chats and LoRA.

The folder is made here, tiny and of the shape that the hub has Qwen2.5 in: no weights can be downloaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tawin import cli
from tawin.catalog.catalog import Catalog
from tawin.catalog.prompt import STYLES, template_of
from tawin.cli import train
from tawin.config import SyntheticConfig
from tawin.config.files import load_yaml
from tawin.config.presets import PRESETS
from tawin.data.dataset import Dataset, Items, load_dataset, save_dataset
from tawin.data.synthetic import make_synthetic
from tawin.run.folder import RunFolder

from .docs_pages import blocks
from .tawin.text_models import save_pretrained_model

REAL_DATA = Path(os.environ.get("TAWIN_DATA", Path(__file__).parents[2] / "shared" / "data"))
SCALED_DOWN = [
    *("--sft.batch-size=8", "--sft.gradient-accumulation=2", "--sft.max-steps=3", "--sft.evaluate-every=10"),
    *("--grpo.batch-size=8", "--grpo.gradient-accumulation=1", "--grpo.steps=2", "--grpo.group-size=4"),
    *("--evaluation.beam-width=10", "--evaluation.valid-users=6", "--evaluation.test-users=6"),
]

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Few users and items, with real titles where there are some at hand."""
    made = make_synthetic(SyntheticConfig(num_users=40, num_items=30, num_clusters=5), seed=0)
    titles = made.items.titles
    if REAL_DATA.is_dir():
        real = load_dataset(REAL_DATA / "office").items.titles
        titles = [title for title in real or [] if title and len(title) < 40][:30]
    items = Items(made.items.item_ids, titles=titles)
    return Dataset("made", made.user_ids, made.sequences, items)


@pytest.fixture(scope="module")
def folders(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODEL and DATA."""
    folder = tmp_path_factory.mktemp("pretrained")
    texts = [title for title in dataset.items.titles or [] if title] + [style.text for style in STYLES.values()]
    save_pretrained_model(folder / "MODEL", texts)
    save_dataset(dataset, folder / "DATA")
    return folder


def run(folders: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run of the paper preset, scaled down."""
    places = ["--model", str(folders / "MODEL"), "--data", str(folders / "DATA"), "--out", str(out)]
    train.main(["--preset", "paper", *places, *SCALED_DOWN, *options])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def with_titles(folders: Path) -> Path:
    run(folders, folders / "titles")
    return folders / "titles"


def prompt_texts(out: Path, histories: list[list[int]]) -> list[str]:
    tokenizer, catalog = AutoTokenizer.from_pretrained(out / "catalog"), Catalog.load(out / "catalog")
    input_ids, mask = catalog.encode_histories([np.array(history) for history in histories])
    return [tokenizer.decode(row[kept.bool()]) for row, kept in zip(input_ids, mask, strict=True)]


def test_the_paper_preset_prompts_with_titles_and_trains_all_weights(with_titles: Path, dataset: Dataset) -> None:
    titles = dataset.items.titles or []
    expected = STYLES["rere"].text.replace("{history}", f'"{titles[3]}", "{titles[0]}"')
    assert prompt_texts(with_titles, [[3, 0]]) == [expected]
    results = json.loads((with_titles / "results.json").read_text())
    assert {"sft", "grpo"} <= results.keys()
    lines = [json.loads(line) for line in (with_titles / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 1, 2]
    # The weights are those of the folder, in fp32, and moved.
    before = AutoModelForCausalLM.from_pretrained(with_titles.parent / "MODEL", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(with_titles / "checkpoints" / "grpo").state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.dtype == torch.float32 and weight.shape == before[name].shape
        assert 0.0 < float((weight - before[name]).abs().max()) < 0.01, name  # five steps at 3e-4 or less


def test_a_finished_run_recommends_by_its_own_template(with_titles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recommend", str(with_titles), "--history", "1,2,3", "--top", "4"])
    printed = capsys.readouterr().out
    assert sum(line.lstrip("│ ").split("│")[0].strip().isdigit() for line in printed.splitlines()) == 4


def test_activation_checkpointing_trains_the_same(with_titles: Path, folders: Path, tmp_path: Path) -> None:
    plain = [json.loads(line) for line in (with_titles / "metrics.jsonl").read_text().splitlines()]
    lines = run(folders, tmp_path / "run", "--policy.checkpoint-activations")
    for name in ("loss", "grad_norm"):
        ours, theirs = ([line[name] for line in run if name in line] for run in (lines, plain))
        # In RL it does not go on from the rollout's prefill, which rounds otherwise.
        assert len(ours) == 5 and ours == pytest.approx(theirs, rel=1e-3, abs=1e-7)


def test_semantic_ids_in_a_chat_with_lora_train_adapters_and_the_new_tokens_alone(
    folders: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ids = ["--catalog.item-tokens=semantic_id", "--catalog.codes=6", "--catalog.levels=2"]
    chat = ["--prompt.style=minionerec", "--prompt.chat", "--prompt.system=You recommend."]
    run(folders, out, *ids, *chat, "--policy.lora-rank=2", "--sft.learning-rate=0.05", "--grpo.beta=0")

    tokenizer, catalog = AutoTokenizer.from_pretrained(out / "catalog"), Catalog.load(out / "catalog")
    names = ["".join(tokenizer.convert_ids_to_tokens(row[row >= 0].tolist())) for row in catalog.token_ids]
    content = STYLES["minionerec"].text.replace("{history}", f"{names[3]}, {names[0]}")
    messages = [{"role": "system", "content": "You recommend."}, {"role": "user", "content": content}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt_texts(out, [[3, 0]]) == [expected]

    known = len(AutoTokenizer.from_pretrained(folders / "MODEL"))
    new = torch.unique(catalog.token_ids[catalog.token_ids >= 0])
    assert int(new.min()) == known and len(new) == len(tokenizer) - known > 5  # some take padding, some are added
    before = AutoModelForCausalLM.from_pretrained(folders / "MODEL", dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "sft")
    old_rows, rows = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    assert torch.equal(rows[:known], old_rows[:known])
    start = old_rows[:known].mean(0)
    assert bool(((rows[new] - start).abs().amax(1) > 0.01).all())  # where they were drawn, within 1e-3
    moved = {
        name for name, weight in after.state_dict().items() if not torch.equal(weight, fitting(before, name, weight))
    }
    assert all("embed" in name or "lm_head" in name or "_proj.weight" in name for name in moved)
    assert sum("_proj.weight" in name for name in moved) == 2 * 7  # every linear layer has its adapter

    trained = RunFolder.open(out)
    assert trained.config.policy.lora_rank == 2
    cli.main(["recommend", str(out), "--history", "1,2,3"])


def test_one_token_an_item_with_lora_begins_at_the_scale_of_the_models_embeddings(
    folders: Path, dataset: Dataset, tmp_path: Path
) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(dataset.items), 6)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    out = tmp_path / "run"
    items = ["--catalog.item-tokens=item", f"--catalog.vectors={tmp_path / 'vectors.npy'}", "--prompt.style=minionerec"]
    run(folders, out, *items, "--policy.lora-rank=2", "--sft.epochs=0", "--grpo.steps=0", "--grpo.beta=0")
    known = len(AutoTokenizer.from_pretrained(folders / "MODEL"))
    catalog = Catalog.load(out / "catalog")
    tokens = catalog.token_ids[:, 0]
    assert tokens.tolist() == list(range(known, known + len(dataset.items)))
    rows = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "sft").get_input_embeddings().weight.detach()
    old = AutoModelForCausalLM.from_pretrained(folders / "MODEL", dtype=torch.float32).get_input_embeddings().weight
    assert torch.equal(rows[:known], old[:known])
    own = old[:known].detach()
    # Items that no training sequence has are placed by those that one has, after training (tests of token_vectors).
    seen = np.unique(np.concatenate([items[:-2] for items in dataset.sequences]))
    begun = (rows[tokens[seen]] - own.mean(0)) / own.std(0)
    expected = torch.from_numpy(vectors[seen] @ vectors[seen].T)
    torch.testing.assert_close(begun @ begun.T / (begun @ begun.T).trace(), expected / expected.trace())


def fitting(model: torch.nn.Module, name: str, like: torch.Tensor) -> torch.Tensor:
    """A weight of the model; of an embedding with fewer rows, something that differs."""
    weight = model.state_dict()[name]
    return weight if weight.shape == like.shape else torch.zeros_like(like)


def test_the_template_that_the_page_writes_in_yaml_is_one(tmp_path: Path) -> None:
    (block,) = blocks("docs/PRETRAINED.md", "yaml")
    (tmp_path / "prompt.yaml").write_text(block[1])
    template = template_of(load_yaml(tmp_path / "prompt.yaml", PRESETS["paper"]).prompt)
    assert template.text.startswith("I have bought these, in this order:\n{history}\n")
    assert (template.item, template.separator) == ("* {item}", "\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt.style=plain", "--prompt.chat"], "prompt.separator: expected text between the titles of a chat"),
        (["--prompt.template=Next"], "prompt.template: expected text with {history} once"),
        (["--catalog.instruction=Next:"], "catalog.instruction: expected '' where options of `prompt` are given"),
        (["--attention=flash_attention_2"], "attention: 'flash_attention_2' needs"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    options: list[str], message: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--attention=flash_attention_2" in options and torch.cuda.is_available():
        pytest.skip("flash-attn may well run here")
    with pytest.raises(SystemExit) as caught:
        run(folders, tmp_path / "run", *options)
    assert message in " ".join((str(caught.value.code) + "".join(capsys.readouterr())).replace("│", " ").split())
    assert not (tmp_path / "run").exists()
