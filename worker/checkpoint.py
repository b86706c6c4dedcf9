"""Checkpoints of a training, so that a crashed night goes on where it stood.

Owns one safetensors file: weights, kept weights, optimiser moments, and the training's counters as
JSON in its header, so that one rename replaces all of it. Knows nothing of objectives.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from memory.atomic import write_file
from memory.free_space import UNLIMITED, FreeSpace, NoRoomError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What one look at the weights after some steps saw."""

    step: int
    outcome: float | None
    """Mean over the watched examples, in [0, 1] (`worker/measure.py`); None: latents are not finite."""

    @property
    def text(self) -> str:
        """What people are shown of it."""
        return "not finite" if self.outcome is None else f"answers agree {100 * self.outcome:.0f} %"


@dataclass
class Counters:
    """Where a training stands."""

    fingerprint: str
    """Of examples, recipe and start: another training's checkpoint is not gone on from."""
    step: int = 0
    best_step: int = 0
    """Whose weights are kept."""
    best_values: list[float] = field(default_factory=list)
    """Outcome of each watched example where the mean was highest."""
    stale: int = 0
    """Looks in a row that were clearly worse than the best."""
    skipped: int = 0
    """Steps in a row whose gradient was not finite."""
    stopped: bool = False
    looks: list[Look] = field(default_factory=list)


def save(
    path: Path,
    network: nn.Module,
    kept: dict[str, torch.Tensor],
    adam: torch.optim.Adam,
    counters: Counters,
    room: FreeSpace = UNLIMITED,
) -> None:
    """Write all of it to `path`, atomically; nothing, and logged, where the disk has no room."""
    try:
        room.demand("a checkpoint")
    except NoRoomError as error:
        logger.warning("the training goes on without a checkpoint: %s", error)
        return
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"kept.{name}": value for name, value in kept.items()}
    for index, moments in adam.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    metadata = {"counters": json.dumps(asdict(counters))}
    # Not `save_file`, which puts another file in the place of the one that is locked.
    write_file(path, lambda new: new.write_bytes(serialize(whole, metadata)))


def reached_step(path: Path) -> int:
    """Return the step of a checkpoint, whatever training it is of; 0 when it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["counters"])["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


def restore(
    path: Path, network: nn.Module, adam: torch.optim.Adam, fingerprint: str
) -> tuple[Counters, dict[str, torch.Tensor]] | None:
    """Load `path` into network and optimiser and return counters and kept weights.

    None, with nothing touched, when there is no checkpoint of this training or it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            raw = json.loads(file.metadata()["counters"])
            looks = [Look(**look) for look in raw.pop("looks")]
            counters = Counters(**raw, looks=looks)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        logger.warning("checkpoint %s cannot be read and is not used: %s", path, error)
        return None
    if counters.fingerprint != fingerprint:
        logger.info("checkpoint %s is of another training and is not used", path)
        return None
    network.load_state_dict(_below("network.", tensors))
    state = adam.state_dict()
    for name, value in _below("adam.", tensors).items():
        index, moment = name.split(".", 1)
        state["state"].setdefault(int(index), {})[moment] = value
    adam.load_state_dict(state)
    return counters, _below("kept.", tensors)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
