"""The main job end to end: a run, its folder, resuming, the console script, and what is refused before it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tawin import cli
from tawin.catalog.catalog import Catalog
from tawin.catalog.item_vectors import cooccurrence_vectors
from tawin.cli import train
from tawin.config import SyntheticConfig
from tawin.data.dataset import split_leave_one_out
from tawin.data.synthetic import make_synthetic
from tawin.evaluate.ranking import decided, evaluate, ranks_of, sampled
from tawin.model.policy import load_model
from tawin.report.page import write_report
from tawin.run.folder import RunFolder
from tawin.run.states import states
from tawin.train import pipeline
from tawin.train.engine import Stage
from tools.faults.event_files import scalars

from .small_runs import SMALL, assert_same_run, metrics

SYNTHETIC = SyntheticConfig(num_users=60, num_items=30, num_clusters=5)

pytestmark = pytest.mark.usefixtures("no_report")


def run(out: Path, *options: str) -> dict[str, Any]:
    train.main([*SMALL, "--out", str(out), *options])
    return json.loads((out / "results.json").read_text())


def write_data(folder: Path, sequences: list[list[int]], items: int, **columns: list[Any]) -> Path:
    folder.mkdir()
    pq.write_table(
        pa.table(
            {
                "user_id": pa.array(range(len(sequences)), pa.int32()),
                "item_ids": pa.array(sequences, pa.list_(pa.int32())),
            }
        ),
        folder / "interactions.parquet",
    )
    pq.write_table(pa.table({"item_id": pa.array(range(items), pa.int32()), **columns}), folder / "items.parquet")
    return folder


def random_sequences(users: int, items: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, items, draw.integers(5, 9)).tolist() for _ in range(users)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(pipeline, "write_report", write_report)  # the one run here that has its report
        run(out)
    return out


def test_a_run_leaves_what_the_readme_says(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "wpauc") for k in (1, 3, 5, 10)}
    for stage in ("sft", "grpo"):
        for part in ("valid", "test"):
            assert results[stage][part].keys() == names
    assert results["baselines"].keys() == {"popularity", "counts", "item_knn"}
    assert all(figures[part].keys() == names for figures in results["baselines"].values() for part in ("valid", "test"))
    assert results["config"]["evaluation"]["exclude_history"] in ("yes", "no")  # decided
    assert results["users"] == {"valid": 60, "test": 60}
    assert results["config"]["grpo"]["group_size"] == 6
    assert {"sft", "grpo"} <= results["seconds"].keys()
    assert results["best_achievable"].keys() == {"1", "3", "5", "10"}
    lines = metrics(finished)
    assert [line["step"] for line in lines if line["stage"] == "grpo" and "reward" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["stage"] == "grpo" and "valid" in line] == [0, 2, 4]
    assert (finished / "report.html").is_file()
    shown = scalars(finished / "tensorboard" / "grpo")
    assert shown["grpo/reward"] == [
        (x["step"], pytest.approx(x["reward"])) for x in lines if "reward" in x and x["stage"] == "grpo"
    ]
    assert [step for step, _ in shown["grpo/valid/recall@3"]] == [0, 2, 4]
    assert shown["grpo/results/test/recall@3"] == [(4, pytest.approx(results["grpo"]["test"]["recall@3"]))]


def test_the_checkpoints_load_with_plain_from_pretrained(finished: Path) -> None:
    for stage in ("sft", "grpo"):
        model = AutoModelForCausalLM.from_pretrained(finished / "checkpoints" / stage)
        tokenizer = AutoTokenizer.from_pretrained(finished / "checkpoints" / stage)
        assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_the_kept_grpo_model_is_never_worse_on_valid_than_the_sft_start(finished: Path) -> None:
    config = RunFolder.open(finished).config
    select = config.evaluation.select
    curve = [line["valid"][select] for line in metrics(finished) if line["stage"] == "grpo" and "valid" in line]
    dataset = make_synthetic(config.synthetic, config.seed)
    split = split_leave_one_out(dataset, max_history=config.split.max_history, seed=config.seed)
    config = decided(config, split)
    model = load_model(finished / "checkpoints" / "grpo")
    valid = sampled(split.valid, config.evaluation.valid_users, config.seed)
    kept = evaluate(model, Catalog.load(finished / "catalog"), valid, config.evaluation)[select]
    assert kept == pytest.approx(max(curve))


@pytest.mark.parametrize("updates", [3, 9, 11])
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_was(
    finished: Path, tmp_path: Path, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_and_resume(tmp_path / "run", updates, monkeypatch)
    assert_same_run(tmp_path / "run", finished)
    for stage in ("sft", "grpo"):  # in the tracker too every step is there, once
        ours, theirs = (scalars(folder / "tensorboard" / stage) for folder in (tmp_path / "run", finished))
        del ours[f"{stage}/seconds"], theirs[f"{stage}/seconds"]
        assert ours == theirs


def test_a_run_with_a_moving_anchor_and_several_targets_resumes_as_if_it_never_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--grpo.reward=ranking", "--split.rl-targets=2", "--grpo.tawin.anchor-start=4", "--grpo.tawin.anchor=1"]
    run(tmp_path / "whole", *options)
    lines = metrics(tmp_path / "whole")
    assert [line["anchor"] for line in lines if "anchor" in line] == [4.0, 3.0, 2.0, 1.0]
    sft_steps = sum(line["stage"] == "sft" and "loss" in line for line in lines)
    stop_and_resume(tmp_path / "run", sft_steps + 3, monkeypatch, *options)  # the last checkpoint is of GRPO's step 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_with_one_sampled_token_an_item_begins_at_its_vectors_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--catalog.item-tokens=item", "--sft.negatives=8", "--split.rl-seen=1"]
    run(tmp_path / "whole", *options)
    assert Catalog.load(tmp_path / "whole" / "catalog").trie.max_depth == 1
    stop_and_resume(tmp_path / "early", 3, monkeypatch, *options)  # no state was saved before: the model is made anew
    assert_same_run(tmp_path / "early", tmp_path / "whole")
    stop_and_resume(tmp_path / "late", 9, monkeypatch, *options)
    assert_same_run(tmp_path / "late", tmp_path / "whole")
    cli.main(["recommend", str(tmp_path / "whole"), "--history", "1,2,3", "--top", "3"])
    assert "log p" in capsys.readouterr().out

    rows = {}
    for name, more in {"begun": [], "random": ["--catalog.no-initialize"]}.items():
        run(tmp_path / name, *options[:1], *more, "--sft.epochs=0", "--grpo.steps=0")
        weight = load_file(tmp_path / name / "checkpoints" / "sft" / "model.safetensors")["model.embed_tokens.weight"]
        rows[name] = weight[3:]
    vectors = cooccurrence_vectors(split_leave_one_out(make_synthetic(SYNTHETIC, 0)).training, 30, 16)
    alike = torch.nn.functional.normalize(rows["begun"], dim=1) * torch.from_numpy(vectors)
    assert (alike.sum(1) > 0.999).all()
    assert not (rows["begun"] == rows["random"]).all(1).any()


def stop(out: Path, updates: int, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """A run that is stopped after some optimizer steps."""
    update, done = Stage.update, []

    def update_or_stop(stage: Stage, **ends_step: bool) -> float:
        done.append(stage.progress.step)
        if len(done) > updates:
            raise KeyboardInterrupt
        return update(stage, **ends_step)

    with monkeypatch.context() as stopping:
        stopping.setattr(Stage, "update", update_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(out, *options)


def stop_and_resume(out: Path, updates: int, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """It goes on from its last checkpoint."""
    stop(out, updates, monkeypatch, *options)
    train.main(["--out", str(out), "--resume"])


@pytest.mark.parametrize(
    "options",
    [
        ["--grpo.negatives=random", "--grpo.ensure-positive", "--grpo.tawin.no-enabled"],
        ["--grpo.negatives=sample", "--grpo.loss-type=gspo", "--grpo.gradient-accumulation=2"],
        ["--grpo.beta=0.05", "--grpo.loss-type=dapo", "--policy.attention-dropout=0.1"],
        ["--policy.lora-rank=2", "--grpo.beta=0.05", "--grpo.loss-type=dr_grpo"],
        ["--catalog.item-tokens=title", "--evaluation.exclude-history=yes"],
        ["--catalog.item-tokens=item", "--grpo.negatives=sample", "--evaluation.exclude-history=yes"],
        ["--evaluation.counts-weight=0.4", "--catalog.levels=2"],
        ["--evaluation.counts-weight=0", "--catalog.item-tokens=item"],
        [
            "--split.rl-targets=3",
            "--split.rl-seen=2",
            "--grpo.negatives=random",
            "--grpo.ensure-positive",
            "--grpo.reward=ranking",
        ],
        ["--split.rl-share=0.5", "--catalog.no-separate-shared-ids", "--sft.schedule=constant", "--sft.epochs=0"],
    ],
    ids=lambda options: options[0].strip("-"),
)
def test_every_option_of_the_method_runs(options: list[str], tmp_path: Path) -> None:
    results = run(tmp_path / "run", *options)
    assert 0.0 <= results["grpo"]["test"]["recall@10"] <= 1.0
    if "--grpo.beta=0.05" in options:
        assert any(line.get("kl", 0.0) > 0 for line in metrics(tmp_path / "run"))


def test_real_formats_and_a_model_folder_of_ones_own(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", random_sequences(40, 30), 30)
    run(tmp_path / "first", "--data", str(data))
    model = tmp_path / "first" / "checkpoints" / "sft"
    results = run(tmp_path / "second", "--data", str(data), "--model", str(model), "--sft.epochs=0")
    first = json.loads((tmp_path / "first" / "results.json").read_text())
    assert results["sft"] == first["sft"]  # the very start that the first run's GRPO had
    assert results["grpo"] == first["grpo"]


def test_recommend_prints_titles_and_scores(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recommend", str(finished), "--history", "1,2,3", "--top", "4"])
    printed = capsys.readouterr().out
    assert "log p" in printed
    assert sum(line.lstrip("│ ").split("│")[0].strip().isdigit() for line in printed.splitlines()) == 4


def test_recommend_never_repeats_the_history_where_asked(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recommend", str(finished), "--history", "1,2,3", "--top", "27", "--exclude-history"])
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    items = {int(row[2]) for row in rows}
    assert items == set(range(30)) - {1, 2, 3}


def test_evaluate_gives_the_runs_own_figures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["evaluate", str(finished)])
    results = json.loads((finished / "results.json").read_text())
    assert f"recall@5 {results['grpo']['test']['recall@5']:.4f}" in capsys.readouterr().out


def test_report_compares_runs(finished: Path, tmp_path: Path) -> None:
    cli.main(["report", str(finished), str(finished), "--out", str(tmp_path / "report")])
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend", "{run}", "--history", "1,x"], "--history: expected ids of the log"),
        (["recommend", "{run}", "--history", "999"], "999"),
        (["recommend", "{run}", "--history", "1", "--top", "0"], "--top: expected at least 1"),
        (["recommend", "{run}/checkpoints", "--history", "1"], "config.yaml"),
        (["evaluate", "{run}", "--data", "{run}"], "items.parquet"),
        (["report", "{run}/checkpoints"], "checkpoints"),
    ],
)
def test_the_console_script_refuses_by_name(finished: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([argument.format(run=finished) for argument in arguments])
    assert message in str(caught.value.code)


def no_interactions(tmp_path: Path) -> list[str]:
    return ["--data", str(write_data(tmp_path / "data", [], 5))]


def unknown_items(tmp_path: Path) -> list[str]:
    return ["--data", str(write_data(tmp_path / "data", [[0, 1, 2, 77]], 5))]


def short_users(tmp_path: Path) -> list[str]:
    return ["--data", str(write_data(tmp_path / "data", [[0, 1], [2]], 5))]


def uneven_ids(tmp_path: Path) -> list[str]:
    ids = pa.array([[1, 2], [1, 3], [4], [5, 6], [7, 8]], pa.list_(pa.int32()))
    return ["--data", str(write_data(tmp_path / "data", random_sequences(9, 5), 5, semantic_id=ids))]


def nan_vectors(tmp_path: Path) -> list[str]:
    np.save(tmp_path / "vectors.npy", np.full((5, 4), np.nan, dtype=np.float32))
    data = write_data(tmp_path / "data", random_sequences(9, 5), 5)
    return ["--data", str(data), "--catalog.vectors", str(tmp_path / "vectors.npy")]


def nan_vectors_in_place_of_ids(tmp_path: Path) -> list[str]:
    options = nan_vectors(tmp_path)
    data = write_data(tmp_path / "given", random_sequences(9, 5), 5, semantic_id=[[item, 0] for item in range(5)])
    return [*options, "--data", str(data), "--catalog.rebuild-ids"]


def no_such_folder(tmp_path: Path) -> list[str]:
    return ["--data", str(tmp_path / "absent")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_interactions, "interactions"),
        (unknown_items, "77"),
        (short_users, "at least 3 items"),
        (uneven_ids, "semantic_id"),
        (nan_vectors, "NaN"),
        (nan_vectors_in_place_of_ids, "NaN"),
        (no_such_folder, "absent"),
    ],
)
def test_bad_data_is_refused_by_name_and_nothing_is_written(make: Any, message: str, tmp_path: Path) -> None:
    options = make(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run", *options)
    assert message.lower() in str(caught.value.code).lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [["--no-such-option=1"], ["--grpo.negatives=worst"], ["--preset=huge"], ["--grpo.group-size=1"]]
)
def test_an_unknown_or_wrong_option_is_refused_and_nothing_is_written(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run", *options)
    assert caught.value.code == 2
    said = "".join(capsys.readouterr())
    assert options[0].split("=")[0].strip("-").split(".")[-1].replace("-", "_") in said.replace("-", "_")
    assert not (tmp_path / "run").exists()


def test_a_second_run_into_the_same_folder_is_refused(finished: Path) -> None:
    before = (finished / "results.json").read_bytes()
    with pytest.raises(SystemExit, match="--resume"):
        run(finished)
    assert (finished / "results.json").read_bytes() == before


def test_a_resume_with_another_config_names_the_field(finished: Path) -> None:
    with pytest.raises(SystemExit, match=r"grpo\.learning_rate was 0\.0002, is now 0\.5"):
        train.main(["--out", str(finished), "--resume", "--grpo.learning-rate=0.5"])


def test_users_with_fewer_than_three_items_are_reported_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", [*random_sequences(20, 12), [0, 1], [2]], 12)
    results = run(tmp_path / "run", "--data", str(data), "--sft.epochs=1", "--grpo.steps=1")
    assert results["dataset"]["users_left_out"] == 2
    assert "2 with fewer than three items left out" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_moments_of_8_bits_train_and_a_stopped_run_goes_on_as_if_it_never_was(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    # From 4,096 weights on a tensor's moments have 8 bits.
    options = [f"--{stage}.optimizer=adamw_8bit", "--policy.hidden-size=64", "--policy.intermediate-size=96"]
    whole = run(tmp_path / "whole", *options)
    stop(tmp_path / "stopped", 5 if stage == "sft" else 11, monkeypatch, *options)
    moments = load_file(states(tmp_path / "stopped" / "checkpoints")[-1] / "optimizer.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in moments.values()}
    train.main(["--out", str(tmp_path / "stopped"), "--resume"])
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert json.loads((tmp_path / "stopped" / "results.json").read_text())["grpo"] == whole["grpo"]


@pytest.mark.parametrize(("optimizer", "message"), [("adamw_8bit", "needs bitsandbytes"), ("paged_adamw_8bit", "GPU")])
def test_an_optimizer_that_this_machine_has_not_is_refused_before_anything_is_written(
    optimizer: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = None if optimizer == "adamw_8bit" else "found"
    monkeypatch.setattr("tawin.train.engine.importlib.util.find_spec", lambda _name: spec)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"grpo.optimizer.*{message}"):
        run(tmp_path / "run", f"--grpo.optimizer={optimizer}")
    assert not (tmp_path / "run").exists()


def crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where",
    [
        "tawin.catalog.catalog.pq.write_table",
        "transformers.PreTrainedTokenizerBase.save_pretrained",
        "tawin.train.pipeline._evaluate_stage",
    ],
)
def test_a_crash_at_any_point_of_the_job_can_be_resumed(
    finished: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(where, crash)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    train.main(["--out", str(tmp_path / "run"), "--resume"])
    assert metrics(tmp_path / "run") == metrics(finished)
    ours, theirs = (json.loads((p / "results.json").read_text()) for p in (tmp_path / "run", finished))
    assert ours["grpo"] == theirs["grpo"]
    assert ours["seconds"].keys() == theirs["seconds"].keys()


def test_a_resume_knows_its_items_in_another_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data", random_sequences(40, 30), 30)
    with monkeypatch.context() as broken:
        broken.setattr("tawin.train.pipeline._evaluate_stage", crash)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", "--data", str(data))
    items = pq.read_table(data / "items.parquet")
    pq.write_table(items.take(list(reversed(range(30)))), data / "items.parquet")
    train.main(["--out", str(tmp_path / "run"), "--resume"])
    pq.write_table(items.slice(1), data / "items.parquet")
    with pytest.raises(SystemExit, match=r"column 'item_ids': expected items|expected the 30 items"):
        train.main(["--out", str(tmp_path / "run"), "--resume"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split.rl-share=0"], "split.rl_share: expected a share that keeps"),
        (["--catalog.vectors=absent.npy", "--catalog.item-tokens=title"], "catalog.vectors: expected None"),
        (
            ["--catalog.vectors=a.npy", "--catalog.item-tokens=item", "--catalog.no-initialize"],
            "catalog.vectors: expected",
        ),
        (["--seed=-1"], "seed: expected 0 or more"),
    ],
)
def test_options_that_leave_nothing_to_do_are_refused_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run", *options)
    assert message in str(caught.value.code) + "".join(capsys.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [[], ["--grpo.beta=0.1", "--policy.hidden-dropout=0.1"], ["--policy.lora-rank=2", "--sft.epochs=0"]],
    ids=["plain", "reference", "adapters"],
)
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    train.main([*SMALL, "--dry-run", *options])
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().out
    assert ("SFT: measuring" in printed) == ("--sft.epochs=0" not in options)
    for words in (
        "60 users",
        "steps",
        "weights, fp32",
        "peak of memory while measuring",
        "together",
        "measured micro-batch",
        "GRPO with hits: measuring",
    ):
        assert words in printed
    assert "dry run: nothing was written" in printed


def test_a_dry_run_refuses_what_a_run_would_refuse(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in finished.iterdir())
    with pytest.raises(SystemExit, match="holds another run"):
        run(finished, "--dry-run")
    with pytest.raises(SystemExit):
        train.main(["--out", str(finished), "--resume", "--dry-run"])
    assert "--dry-run: expected it without --resume" in capsys.readouterr().err
    assert sorted(path.name for path in finished.iterdir()) == before


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state a process; a test with another precision needs one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_autocast_trains_as_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "make_accelerator", lambda: Accelerator(cpu=True, mixed_precision="bf16"))
    results = run(tmp_path / "run", "--policy.lora-rank=2", "--grpo.beta=0.01")
    assert 0.0 <= results["grpo"]["test"]["recall@10"] <= 1.0
    assert all(line["kl"] < 1.0 for line in metrics(tmp_path / "run") if "kl" in line)


def test_a_run_without_rl_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []

    def counted(*arguments: Any, description: str, **options: Any) -> np.ndarray:
        evaluated.append(description)
        return ranks_of(*arguments, description=description, **options)

    monkeypatch.setattr(pipeline, "ranks_of", counted)
    results = run(tmp_path / "run", "--grpo.steps=0")
    assert evaluated == ["sft valid", "sft test"]
    assert results["grpo"] == results["sft"]
    before, after = (RunFolder.open(tmp_path / "run").ranks(stage, "test") for stage in ("sft", "grpo"))
    assert before and after and np.array_equal(after.ranks, before.ranks)  # the report's interval needs both
    assert (tmp_path / "run" / "checkpoints" / "grpo" / "model.safetensors").exists()


def test_all_that_is_missing_is_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "prepare", None)  # what loads: never called
    absent = [f"--{name}={tmp_path / name}" for name in ("data", "model", "catalog.vectors")]
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run", *absent)
    assert all(f"{tmp_path / name}" in str(caught.value) for name in ("data", "model", "catalog.vectors"))
    assert "interactions.parquet" in str(caught.value) and "--catalog.vectors" in str(caught.value)
    assert not (tmp_path / "run").exists()
