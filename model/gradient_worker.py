"""The gradient worker: a second copy of the model in a process of its own (decisions/engine.md).

Owns the requests to that process, one at a time, and its restart. vLLM keeps its weights packed on a
CPU, where no gradient passes, and a gradient computed inside the gateway would hold up serving. Knows
nothing of who asks. The process itself: `model/gradient_process.py`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

import torch

from model.engine import EngineDeadError, EngineError, Label, LatentGradient, SteeredPrompt
from model.gradient_process import Child
from model.placement import PlacementKind
from model.space import LatentSpace

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 300.0
_RETRY_PAUSE_S = 10.0
"""After a start that failed, further ones fail at once for so long, instead of each loading a model."""

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class GradientWorker:
    """A `FrozenModel` in a spawned process, started by `start` or by the first call.

    Calls wait for each other. A call during which the process dies raises EngineDeadError; the process
    is then started again, and the next call waits for it. A process that died between two calls is
    started again by the second.

    Args:
        model_path, length, placement, dtype, max_model_len: as for `FrozenModel`.
        threads: torch threads of the process.
        timeout_s: longest time one call may take; then the process is ended.
    """

    def __init__(
        self,
        model_path: str,
        *,
        length: int,
        placement: PlacementKind,
        dtype: torch.dtype = torch.float32,
        max_model_len: int | None = None,
        threads: int = 1,
        timeout_s: float = 300.0,
    ) -> None:
        self._model_arguments = {
            "model_path": model_path,
            "length": length,
            "placement": placement,
            "dtype": dtype,
            "max_model_len": max_model_len,
        }
        self._threads, self._timeout_s = threads, timeout_s
        self._child: Child | None = None
        self._space: LatentSpace | None = None
        self._failed_at: float | None = None
        self._closing = threading.Event()
        # One thread puts calls in a row, and only it starts and buries processes.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradient_worker")

    @property
    def space(self) -> LatentSpace | None:
        """The space whose latents the gradient worker takes; None before the first start."""
        return self._space

    @property
    def pid(self) -> int | None:
        """Id of the process; None when there is none."""
        child = self._child
        return None if child is None else child.pid

    async def start(self) -> None:
        """Start the process and wait until it has loaded the model.

        Raises:
            EngineDeadError: the process did not start; the message says why.
        """
        await self._run(self._ready)

    async def raw_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return uncentred final hidden states at the prompts' last tokens, (B, d)."""
        states = await self._run(self._ask, "raw_states", ([tuple(prompt) for prompt in prompts],))
        return torch.from_numpy(states)

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,)."""
        arguments = (_packed(prompts), list(labels))
        return torch.from_numpy(await self._run(self._ask, "log_likelihood", arguments))

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return what each label is worth, (B,), and the weighted gradients by latents, (B, L, d)."""
        arguments = (_packed(prompts), list(labels), [float(weight) for weight in weights])
        values, gradients = await self._run(self._ask, "latent_gradient", arguments)
        return LatentGradient(torch.from_numpy(values), torch.from_numpy(gradients))

    async def close(self) -> None:
        """End the process; the call under way and those that wait raise EngineDeadError."""
        if self._closing.is_set():
            return
        self._closing.set()
        child = self._child
        if child is not None:
            child.kill()
        with suppress(RuntimeError):
            self._thread.submit(self._bury)
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self, call: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        if self._closing.is_set():
            raise EngineDeadError("the gradient worker was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._ready()
        assert self._child is not None
        try:
            return self._child.ask((method, arguments), self._timeout_s)
        except EngineDeadError as error:
            self._bury()
            if self._closing.is_set():
                raise EngineDeadError("the gradient worker was closed") from error
            with suppress(RuntimeError):  # closed this very moment
                self._thread.submit(self._revive)
            raise EngineDeadError(f"{error}; it is started again") from error

    def _ready(self) -> None:
        if self._closing.is_set():
            raise EngineDeadError("the gradient worker was closed")
        if self._child is not None:
            if self._child.is_alive():
                return
            log.warning(
                "gradient worker process %s died between two calls; it is started again", self._child.pid
            )
            self._bury()
        if self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_PAUSE_S:
            raise EngineDeadError("the gradient worker failed to start a moment ago; it is tried again later")
        begun = time.monotonic()
        try:
            self._child = Child(self._model_arguments, self._threads)
            if self._closing.is_set():  # `close` came while the process was being made and did not see it
                self._child.kill()
            self._space = self._child.answer(_START_TIMEOUT_S)
        except (EngineError, ValueError, OSError) as error:
            self._failed_at = time.monotonic()
            self._bury()
            raise EngineDeadError(f"the gradient worker did not start: {error}") from error
        self._failed_at = None
        log.info("gradient worker started in %.1f s as process %s", time.monotonic() - begun, self._child.pid)

    def _revive(self) -> None:
        try:
            self._ready()
        except EngineDeadError as error:
            log.warning("%s", error)

    def _bury(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def _packed(prompts: Sequence[SteeredPrompt]) -> list[tuple[Any, ...]]:
    # As numpy: torch would send tensors through shared memory, which outlives a killed process.
    return [
        (
            prompt.token_ids,
            None if prompt.latent is None else prompt.latent.detach().float().numpy(),
            prompt.position,
        )
        for prompt in prompts
    ]
