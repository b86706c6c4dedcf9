"""The running parts of the gateway, as the routes see them.

Owns the bundle of parts and whether it is there yet. Knows nothing of how the parts are built
(server/wiring.py) or of HTTP.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi import FastAPI

from config.settings import Settings
from memory.free_space import FreeSpace
from memory.registry import PriorRegistry
from memory.state import State
from memory.store import EpisodeStore
from model.engine import Engine
from server.access import Doorman
from server.errors import NotReadyError
from server.landscape import Landscape
from server.nights import NightCoordinator
from server.questions import Questions
from server.steering.active_prior import ActivePrior
from server.steering.experiment import Experiment
from server.steering.metrics import Metrics
from server.steering.pipeline import Steering
from server.steering.remember import Remember
from server.steering.store_access import StoreAccess
from server.steering.traces import TraceLog
from server.tenants import Parts, Tenants
from server.tracing import Tracing
from server.upkeep import Upkeep


class Check(Protocol):
    """What one start-up self-check found."""

    @property
    def name(self) -> str:
        """Short fixed name, such as `mixed-prompt`."""
        ...

    @property
    def ok(self) -> bool:
        """Whether steering may run."""
        ...

    @property
    def value(self) -> float | None:
        """What was measured."""
        ...

    @property
    def detail(self) -> str:
        """What that means."""
        ...


@dataclass(frozen=True)
class Gateway:
    """Everything the routes call. Built once, closed once."""

    settings: Settings
    space: str
    """Id of the latent space that is served."""
    engine: Engine
    inner: FastAPI
    """vLLM's app: every route that is not ours."""
    served: Callable[[], Collection[str]]
    """Names that vLLM answers to, adapters included."""
    engine_answers: Callable[[], Awaitable[bool]]
    state: State
    """Nights, traces, evidence, labels and API keys."""
    doorman: Doorman
    store: EpisodeStore
    lookups: StoreAccess
    """The store as routes ask it, apart from requests that recall."""
    statistics: StoreAccess
    """The store as statistics ask it: they read all episodes, and hold up no probe."""
    tenants: Tenants
    """Priors and nights of each tenant."""
    own: Parts
    """Those of the default tenant."""
    remember: Remember
    upkeep: Upkeep
    landscape: Landscape
    """The memory as a map, for people."""
    questions: Questions
    traces: TraceLog
    steering: Steering
    experiment: Experiment
    room: FreeSpace
    """On the disk of the data folder."""
    metrics: Metrics
    tracing: Tracing
    checks: Sequence[Check]

    @property
    def registry(self) -> PriorRegistry:
        """Versions of the default tenant's prior."""
        return self.own.registry

    @property
    def prior(self) -> ActivePrior:
        """What of them serves."""
        return self.own.prior

    @property
    def nights(self) -> NightCoordinator:
        """Nights of the default tenant."""
        return self.own.nights


class Readiness:
    """Whether the gateway is there yet: starting, running, failed or closed."""

    def __init__(self) -> None:
        self.gateway: Gateway | None = None
        self.failure: str | None = None
        """Why it will never be there; None: it may still come."""
        self._settled = asyncio.Event()

    def open(self, gateway: Gateway) -> None:
        """Serve from now on."""
        self.gateway = gateway
        self._settled.set()

    def close(self, failure: str | None = None) -> None:
        """Serve no more; `failure` says why it was not for being told to."""
        self.gateway = None
        self.failure = failure
        self._settled.set()

    async def settled(self) -> None:
        """Wait until the gateway is there or has failed."""
        await self._settled.wait()

    def require(self) -> Gateway:
        """Return the running gateway.

        Raises:
            NotReadyError: saying whether it is still starting, has failed or is ending.
        """
        if self.gateway is not None:
            return self.gateway
        if self.failure is not None:
            raise NotReadyError(f"the server could not start: {self.failure}")
        if self._settled.is_set():
            raise NotReadyError("the server is ending")
        raise NotReadyError("the server is starting: the model is being loaded; ask /readyz")
