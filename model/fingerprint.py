"""The latent space of a model on disk.

Owns the fingerprint of a checkpoint: the same files give the same space id in every process,
wherever the folder lies. Reads megabytes, not gigabytes. Knows nothing of engines.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.engine import ModelUnavailableError
from model.keys import KEY_VERSION
from model.placement import NEUTRAL_VERSION
from model.space import LatentSpace

_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_EDGE = 1 << 20


def space_of(
    model_path: str | Path, tokenizer: Any, hidden_size: int, dtype: str, length: int, placement: str
) -> LatentSpace:
    """Return the space whose latents the model takes.

    Args:
        model_path: folder, or hub id whose files lie in the local hub cache.
        tokenizer: only its `chat_template` is read.
        hidden_size: d.
        dtype: of the checkpoint, not of the computation (`checkpoint_dtype`).
        length: L.
        placement: kind of place, `model/placement.py`.

    Raises:
        ModelUnavailableError: the folder does not hold a model.
    """
    folder = model_folder(model_path)
    template = getattr(tokenizer, "chat_template", None)
    return LatentSpace(
        model=_name(folder),
        revision=revision(folder),
        template=_digest(json.dumps(template, sort_keys=True).encode()),
        length=length,
        hidden_size=hidden_size,
        placement=placement,
        dtype=dtype.removeprefix("torch."),
        key_version=KEY_VERSION,
        neutral_version=NEUTRAL_VERSION,
    )


def model_folder(model_path: str | Path) -> Path:
    """Return the folder of a model's files: itself, or the snapshot of a hub id in the local cache.

    Raises:
        ModelUnavailableError: neither.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        folder = _snapshot(str(model_path))
    if not (folder / "config.json").is_file():
        raise ModelUnavailableError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    return folder.resolve()


def revision(folder: Path) -> str:
    """Return sixteen hex digits of config, tokenizer, and the size and both ends of each weights file."""
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for path in _weights(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]


def checkpoint_dtype(model_path: str | Path) -> str:
    """Return the dtype that the checkpoint's config names, such as `bfloat16`."""
    config = json.loads((model_folder(model_path) / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        dtype = part.get("dtype") or part.get("torch_dtype")
        if dtype:
            return str(dtype).removeprefix("torch.")
    return "float32"


def _weights(folder: Path) -> Iterator[Path]:
    for pattern in _WEIGHTS:
        found = sorted(folder.glob(pattern))
        if found:
            yield from found
            return
    raise ModelUnavailableError(f"{folder} holds no weights ({', '.join(_WEIGHTS)})")


def _name(folder: Path) -> str:
    # The hub cache lays snapshots out as models--owner--name/snapshots/<commit>.
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def _snapshot(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ModelUnavailableError(f"{model_id!r} is neither a folder nor in the local hub cache") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
