"""Identity of a latent space.

Owns what makes two latents comparable, and the check that a latent may enter an engine.
Knows nothing of how latents are found.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class LatentRejectedError(ValueError):
    """A latent that must not reach an engine: wrong shape, not finite, or of another space."""


@dataclass(frozen=True)
class LatentSpace:
    """What a latent of shape (L, d) belongs to. Episodes and priors of two spaces never mix."""

    model: str
    """Name of the model, without the path of its folder; no part of the identity."""
    revision: str
    """Fingerprint of the weights and the tokenizer."""
    template: str
    """Hash of the chat template."""
    length: int
    """L, number of soft vectors."""
    hidden_size: int
    """d, size of the model's input embeddings."""
    placement: str
    dtype: str
    key_version: int
    """Version of the way keys are centred (model/keys.py)."""
    neutral_version: int
    """Version of the neutral start (model/placement.py)."""
    known_as: str | None = None
    """Id under which its memories lie (memory/spaces.py); None: its own."""

    @property
    def id(self) -> str:
        """Sixteen hex digits that name the space in folders, collections and the API."""
        return self.known_as or self.own_id

    @cached_property
    def own_id(self) -> str:
        """The id that follows from what makes the space, and not from names."""
        return _digest({name: value for name, value in self._parts.items() if name != "model"})

    @cached_property
    def earlier_id(self) -> str:
        """The id that builds gave before they left out the model's name."""
        return _digest(self._parts)

    @property
    def _parts(self) -> dict[str, object]:
        parts = asdict(self)
        del parts["known_as"]
        return parts

    @property
    def shape(self) -> tuple[int, int]:
        """(L, d)."""
        return self.length, self.hidden_size

    def check(self, latent: torch.Tensor, space_id: str | None = None) -> torch.Tensor:
        """Return `latent` as float32 on the CPU.

        Raises:
            LatentRejectedError: wrong shape, not finite, not floating point, or `space_id` given
                and not this space's.
        """
        if space_id is not None and space_id != self.id:
            raise LatentRejectedError(f"latent of space {space_id} offered to space {self.id}")
        if tuple(latent.shape) != self.shape:
            raise LatentRejectedError(f"latent of shape {tuple(latent.shape)}, expected {self.shape}")
        if not latent.is_floating_point():
            raise LatentRejectedError(f"latent of dtype {latent.dtype}, expected floating point")
        if not bool(latent.isfinite().all()):
            raise LatentRejectedError("latent holds NaN or infinity")
        return latent.detach().float().cpu()


def _digest(parts: dict[str, object]) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
