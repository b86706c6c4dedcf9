"""What would be served to a request without searching, and where a search begins.

Owns key, recall, transfer and what they lead to, and which base each neighbour's delta is taken from. The
formula itself is `server/steering/transfer.py`. Knows nothing of searches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from config.settings import Settings
from memory.episode import Array
from memory.evidence import weigh
from memory.prior import Prior
from memory.store import Neighbour, Recalled
from memory.tenants import parted
from model.engine import Engine
from server.steering.outcome import Mode, Outcome
from server.steering.recall import Recall
from server.steering.request import Request
from server.steering.transfer import momentum_transfer

BaseOf = Callable[[Array], torch.Tensor]
"""Base latent, (L, d), of a key, (d,)."""

_REASONS: dict[Mode, str] = {
    "recall": "recalled",
    "prior": "prior-covers",
    "recall+prior": "recalled-and-prior-covers",
}


@dataclass(frozen=True, eq=False)
class Start:
    """Where a request begins."""

    key: Array | None
    """(d,) of its prompt; None: nobody needs it yet."""
    latent: torch.Tensor
    """(L, d) that recall and prior lead to, the neutral one where they say nothing."""
    position: int
    """Where latents go in."""
    without: Outcome
    """What is served without a search; its latent, if any, need not be where one begins."""


class Starts:
    """Finds where requests begin."""

    def __init__(self, engine: Engine, recall: Recall, settings: Settings) -> None:
        self._engine, self._recall, self._settings = engine, recall, settings
        self._neutral = engine.neutral_latent()

    async def find(self, request: Request) -> Start:
        """Return where a request begins. Its key is only looked for where something may come of it.

        Raises:
            PlacementError: the prompt has no place for latents.
            LatentRejectedError: what was recalled or learned is none that may be used.
            EngineError: the engine failed.
        """
        position = self._engine.position(request.prompt.token_ids)
        recalls = request.options.recalls or request.refines
        filled = recalls and await self._recall.is_filled(request)
        serving = request.serving
        silent = "memory-empty" if recalls else "recall-off"
        if not (filled or request.searches or (request.prior and request.prior.rows)):
            silent = (serving and serving.silence(None)) or silent
            silent = silent if request.store_answers else "store-unavailable"
            return Start(None, self._neutral, position, request.unsteered(silent))

        with request.stage("key"):
            key: Array = (await self._engine.keys([request.prompt.token_ids]))[0].numpy()
        covered = request.prior is not None and request.prior.covers(key)
        recalled, near = await self._recall.near(request, key, covered=covered) if filled else ([], [])
        silent = "nothing-recalled" if recalls else "recall-off"
        if not request.store_answers:
            silent = "store-unavailable"
        if serving is not None and not covered:
            silent = serving.silence(key) or silent
        if recalled and _harms(near, request.prior.version if request.prior else None):
            recalled, silent = [], "recall-retired"
        with request.stage("transfer"):
            latent = served = self._moved(request, key, recalled, covered=covered)
            if recalled and not request.options.recalls:  # a search may begin there, but it is not served
                recalled, served = [], self._moved(request, key, [], covered=covered)
        if not (recalled or covered):
            return Start(key, latent, position, request.unsteered(silent))
        mode: Mode = "prior"
        if recalled:
            mode = "recall+prior" if covered else "recall"
        outcome = Outcome(
            mode=mode,
            reason=_REASONS[mode] if request.store_answers else "store-unavailable",
            latent=served,
            position=position,
            prior_version=request.prior.version if request.prior else None,
            episode_ids=tuple(near.episode.id for near in recalled),
            similarities=tuple(near.similarity for near in recalled),
        )
        return Start(key, latent, position, outcome)

    def _moved(
        self, request: Request, key: Array, recalled: Sequence[Recalled], *, covered: bool
    ) -> torch.Tensor:
        """Return the latent, (L, d), that prior and recalled episodes lead to."""
        moved = transfer(
            key,
            recalled,
            base_of(request.prior, self._neutral),
            temperature=self._settings.recall_temperature,
            clamp=self._settings.delta_norm_clamp,
        )
        space = parted(request.prior.space)[0] if request.prior and covered else None
        return self._engine.space.check(moved, space)


def base_of(prior: Prior | None, neutral: torch.Tensor) -> BaseOf:
    """Return the function from a key to its base: the prior where a row of it covers that, neutral
    elsewhere."""

    def base(key: Array) -> torch.Tensor:
        row = prior.row(key) if prior is not None else None
        return neutral if row is None else torch.from_numpy(np.array(row.latent, dtype=np.float32))

    return base


def transfer(
    key: Array, recalled: Sequence[Recalled], bases: BaseOf, *, temperature: float, clamp: float
) -> torch.Tensor:
    """Return z_0, (L, d): the key's base, moved by what a search gained for its neighbours.

    Args:
        key: (d,) of the request.
        recalled: Its neighbours, in any order; none leaves the base as it is.
        bases: Base latent of a key under the prior that is active now.
        temperature: T of the softmax over similarities.
        clamp: Longest summed delta, relative to the norm of the base.
    """
    base = bases(key)
    if not recalled:
        return base.clone()
    moved = momentum_transfer(
        base.numpy(),
        np.stack([np.asarray(near.episode.latent, dtype=np.float32) for near in recalled]),  # (k, L, d)
        np.stack([bases(near.episode.key).numpy() for near in recalled]),  # (k, L, d)
        np.array([near.similarity for near in recalled]),
        temperature=temperature,
        clamp=clamp,
    )
    return torch.from_numpy(moved)


def _harms(near: Sequence[Neighbour], prior_version: str | None) -> bool:
    """Return whether steering is proven to have lowered rewards nearby, under the prior that serves here."""
    lifts = [
        neighbour.start_lift
        for neighbour in near
        if neighbour.start_lift is not None and neighbour.prior_version == prior_version
    ]
    return weigh(lifts).standing == "retired"
