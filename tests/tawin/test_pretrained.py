"""What --model may name: a folder, a hub name, a GGUF file; what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tawin.catalog.tokenizer import load_tokenizer, train_title_tokenizer
from tawin.model.policy import load_model
from tawin.pretrained import missing_files, source_of

from .gguf_models import save_gguf
from .text_models import save_pretrained_model

TEXTS = ["Steel bolts, pack of 10", "Brass hinge", "Cable ties 200 mm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def test_a_gguf_file_or_its_folder_is_the_model_and_the_tokenizer_in_it(folder: Path) -> None:
    original = save_gguf(folder / "tiny.gguf", TEXTS)
    input_ids = torch.tensor([[1, 40, 80, 120]])
    for name in (folder / "tiny.gguf", folder):
        model, tokenizer = load_model(name), load_tokenizer(str(name))
        with torch.no_grad():
            got, expected = model.eval()(input_ids).logits, original(input_ids).logits
        assert (got - expected).abs().max() < 0.02 * expected.abs().max()  # 8 bits a weight: 0.4 % each
        made = train_title_tokenizer(TEXTS, 300)
        assert tokenizer(TEXTS[0])["input_ids"] == made(TEXTS[0])["input_ids"]
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


def test_what_a_gguf_file_holds_can_be_saved_and_loaded_as_any_model(folder: Path, tmp_path: Path) -> None:
    save_gguf(folder / "tiny.gguf", TEXTS)
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)  # as each checkpoint does
    again = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_of_several_gguf_files_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"expected one GGUF file, got \['a.gguf', 'b.gguf'\]"):
        source_of(tmp_path)
    assert source_of(tmp_path / "b.gguf")["gguf_file"] == "b.gguf"


def test_what_a_models_folder_lacks_is_named(tmp_path: Path) -> None:
    whole = save_pretrained_model(tmp_path / "whole", TEXTS)
    assert missing_files(str(whole)) is None
    (whole / "tokenizer.json").unlink()
    for path in whole.glob("*.safetensors"):
        path.unlink()
    lack = missing_files(str(whole))
    assert lack is not None and "no weights" in lack and "no tokenizer" in lack and "config.json" not in lack
    for name in (str(tmp_path / "absent"), "./absent", "runs/x/checkpoints", str(tmp_path / "absent.gguf")):
        assert "found no" in (missing_files(name) or "")


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B"])
def test_a_hub_name_is_left_to_transformers(name: str) -> None:
    assert missing_files(name) is None
    assert source_of(name) == {"pretrained_model_name_or_path": name}
