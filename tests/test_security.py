"""Nothing from a stranger's file is executed: models, tokenizers, configs, arrays, titles in the report.

Each test plants something that would leave a trace if it ran. The browser test needs Chromium (Debian's package
`chromium`) and is skipped where there is none.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tawin.catalog.tokenizer import load_tokenizer
from tawin.cli import train
from tawin.config import Config
from tawin.config.files import load_yaml
from tawin.data.dataset import load_dataset, save_dataset
from tawin.data.synthetic import make_synthetic
from tawin.model.policy import load_model
from tawin.report.page import write_report
from tests.tawin.models import tiny_model
from tests.tawin.report.pages import Page, make_run

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tawin", "kernels", "experiments", "bench", "examples")
SOURCES = [ROOT / "train.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "<script>document.body.innerHTML += '<i id=ran></i>'</script>\"'><img src=x onerror='document.body.id=1'>&amp;"
)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_the_bomb_of_these_tests_goes_off(trace):
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


def test_no_source_speaks_of_pickle_or_turns_remote_code_on():
    banned = ("import pickle", "allow_pickle=True", "trust_remote_code=True", "weights_only=False", "torch.load(")
    assert len(SOURCES) > 80
    assert [(path.name, word) for path in SOURCES for word in banned if word in path.read_text()] == []


def model_folder(folder: Path) -> Path:
    tiny_model("qwen2").save_pretrained(folder)
    return folder


def plant_code(folder: Path, file: str, trace: Path, auto_map: dict[str, object], **fields: str) -> None:
    """Have the folder's JSON file ask for a class in a Python file beside it, which leaves a trace when imported."""
    (folder / "stranger.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields, "auto_map": auto_map}))


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_not_run(tmp_path, trace):
    folder = model_folder(tmp_path / "model")
    auto_map = {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"}
    plant_code(folder, "config.json", trace, auto_map, model_type="stranger")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(folder)
    assert not trace.exists()


def test_a_known_model_that_offers_code_as_well_is_loaded_without_it(tmp_path, trace):
    folder = model_folder(tmp_path / "model")
    plant_code(folder, "config.json", trace, {"AutoModelForCausalLM": "stranger.Model"})
    assert type(load_model(folder)).__name__ == "Qwen2ForCausalLM"
    assert not trace.exists()


def test_a_tokenizer_that_brings_its_own_code_is_refused_and_the_code_not_run(tmp_path, trace):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    plant_code(
        folder,
        "tokenizer_config.json",
        trace,
        {"AutoTokenizer": ["stranger.Tokenizer", None]},
        tokenizer_class="StrangerTokenizer",
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(str(folder))
    assert not trace.exists()


def test_weights_that_are_a_pickle_with_code_are_refused_and_the_code_not_run(tmp_path, trace):
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights|safetensors|pickle|unsupported"):
        load_model(folder)
    assert not trace.exists()


def test_a_config_that_asks_for_python_objects_is_refused_and_nothing_run(tmp_path, trace):
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_yaml(path)
    assert not trace.exists()
    yaml.unsafe_load(path.read_text())  # which does run it
    assert trace.exists()


def test_a_memory_mapped_cache_that_holds_a_pickle_is_refused_and_nothing_run(tmp_path, trace):
    save_dataset(make_synthetic(Config().synthetic, 0), tmp_path / "data")
    load_dataset(tmp_path / "data", memory_map=tmp_path / "cache")
    for array in (tmp_path / "cache").glob("*.values.npy"):
        np.save(array, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected the files that load_dataset wrote"):
        load_dataset(tmp_path / "data", memory_map=tmp_path / "cache")
    assert not trace.exists()


def hostile_report(folder: Path) -> Path:
    """The page of a run whose folder, data set and options are all a script."""
    run = folder / HOSTILE.replace("/", "\N{DIVISION SLASH}")
    make_run(run, dataset=HOSTILE, data=HOSTILE, model=HOSTILE)
    return write_report([run], folder / "report")


def test_the_report_keeps_a_name_that_is_a_script_as_text(tmp_path):
    page = Page(hostile_report(tmp_path).read_text())
    assert "script" not in page.tags
    assert HOSTILE in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_runs_nothing_of_a_report_even_without_its_security_policy(tmp_path):
    page = hostile_report(tmp_path)
    text = page.read_text()
    assert text.count('http-equiv="Content-Security-Policy"') == 1
    bare = tmp_path / "bare.html"  # so that what is tested is the escaping, not the policy
    bare.write_text(text.replace('http-equiv="Content-Security-Policy"', 'name="no-policy"'))
    control = tmp_path / "control.html"
    control.write_text(f"<!DOCTYPE html><html><body>{HOSTILE}</body></html>")

    def rendered(path: Path) -> str:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [*command, profile, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert '<i id="ran">' in rendered(control)  # the payload does run where it is not escaped
    for path in (page, bare):
        dom = rendered(path)
        assert '<i id="ran">' not in dom
        assert "&lt;script&gt;document.body" in dom


def test_a_run_name_never_leads_out_of_the_folder_that_it_is_given(tmp_path, monkeypatch, capsys):
    # --out is the user's own path; a preset, which becomes part of a name, is one of a few words.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        train.main(["--preset", "../../outside"])
    assert "invalid choice" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
