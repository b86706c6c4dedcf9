"""Under which id the memories of a latent space lie.

Owns the file `spaces.json`, which says it for every space that was ever opened. Knows nothing of models: a
space comes with its id and with those that earlier builds gave it, which depended on the name of the model's
folder too and became another's when that was renamed.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from config.settings import Settings
from memory.atomic import locked, write_json
from memory.episode import StoreUnavailableError

logger = logging.getLogger(__name__)

SPACES = "spaces.json"
FOLDERS = ("episodes", "priors")


def memory_id(settings: Settings, space: str, earlier: Sequence[str]) -> str:
    """Return the id that stores, registry, nights and locks know a space by.

    The first start decides and writes it down: one of the `earlier` ids where there is something under it,
    else `space` itself.

    Raises:
        StoreUnavailableError: the file cannot be used, or a Qdrant server does not answer.
    """
    path = settings.data_dir / SPACES
    try:
        known = _read(path)
        if space in known:
            return known[space]
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with locked(settings.data_dir / "spaces.lock"):
            known = _read(path)
            if space not in known:
                there = _there(settings)
                known[space] = next((name for name in earlier if name in there), space)
                write_json(path, known)
                _tell(path, space, known, there)
    except (OSError, ValueError) as error:
        raise StoreUnavailableError(f"{path} cannot be used: {error}") from error
    return known[space]


def _tell(path: Path, space: str, known: dict[str, str], there: set[str]) -> None:
    if known[space] != space:
        logger.info(
            "the memories of this model, written by an earlier build, go on as space %s", known[space]
        )
        return
    others = sorted(there - set(known.values()))
    if others:
        logger.warning(
            "this model has no memories yet; there are memories of other spaces: %s. If one of them is of "
            "this model under an earlier name of its folder, write its id beside %s in %s and start again",
            ", ".join(others),
            space,
            path,
        )


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(known, dict) or not all(isinstance(name, str) for name in known.values()):
        raise ValueError("expected an object of ids")
    return known


def _there(settings: Settings) -> set[str]:
    """Return ids of all spaces that have memories or priors."""
    found = {
        entry.name
        for folder in FOLDERS
        for entry in (settings.data_dir / folder).glob("[!.]*")
        if entry.is_dir()
    }
    if settings.memory_url:
        from memory.qdrant_store import spaces_of

        found |= spaces_of(settings.memory_url, settings.memory_api_key)
    return found
