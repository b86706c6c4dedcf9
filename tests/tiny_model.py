"""A checkpoint of random weights with the small model's tokenizer, for what is about processes and wiring.

Its answers are noise, but always the same. Attention looks everywhere alike, so that the last state is a
mean of the prompt's words: prompts of one kind get similar keys, as those of a trained model do.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

HIDDEN = 128
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,  # tied, it would repeat the last token for ever
    "dtype": "float32",  # in bfloat16 many of its likeliest tokens would be tied
}
SCALES = {"q_proj": 0.1, "k_proj": 0.1, "o_proj": 2.0, "down_proj": 0.5, "embed_tokens": 8.0}


def tiny_model(small_model: str, cache: Path) -> str:
    """Return the folder of the tiny model under `cache`, made once from the small model's config."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache.resolve() / "tests" / f"tiny-{version}"
    if target.is_dir():
        return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        building = Path(folder) / "model"
        _write(small_model, building)
        try:
            building.rename(target)
        except OSError:  # another process of the tests was faster
            assert target.is_dir()
    return str(target)


def _write(small_model: str, folder: Path) -> None:
    config = AutoConfig.from_pretrained(small_model)
    config.update(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(SCALES.get(name.removesuffix(".weight").rpartition(".")[2], 1.0))
    network.save_pretrained(folder)
    for file in Path(small_model).iterdir():
        if not (folder / file.name).exists() and file.suffix in {".json", ".jinja"}:
            shutil.copy(file, folder)
