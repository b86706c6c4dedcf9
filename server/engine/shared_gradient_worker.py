"""The gradient worker inside vLLM's worker, seen from the gateway (decisions/engine.md).

Owns when the gradient worker can share vLLM's weights, and the waiting for its jobs. The worker's side is
`GradientHost`. Knows nothing of what is computed.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from model.engine import EngineError, Label, LatentGradient, SteeredPrompt, UnsupportedError
from model.gradient_process import error_named
from model.placement import PlacementKind
from server.engine.errors import translated

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.05
"""Between two questions for a result; each passes through the engine's loop."""


def why_not_shared(config: Any) -> str | None:
    """Return what keeps a gradient worker off the weights of an engine of this `VllmConfig`, or None."""
    offload = config.offload_config
    reasons = {
        "the weights are quantised": config.quant_config is not None,
        "the model is spread over several workers": config.parallel_config.world_size > 1,
        "there are several replicas of the engine": config.parallel_config.data_parallel_size > 1,
        "sleep mode takes the weights away": config.model_config.enable_sleep_mode,
        "weights are offloaded": offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0,
        "LoRA wraps the weights": config.lora_config is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class SharedGradientWorker:
    """The methods of `GradientWorker` on the weights of `llm`'s only worker. Calls wait for each other.

    Args:
        llm: vLLM's `AsyncLLM`, running.
        model_path, length, placement: as for `FrozenModel`.
        timeout_s: longest time one call may take.
    """

    def __init__(
        self,
        llm: Any,
        model_path: str,
        *,
        length: int,
        placement: PlacementKind,
        timeout_s: float = 300.0,
    ) -> None:
        self._llm = llm
        self._start = (model_path, length, placement, int(llm.model_config.max_model_len))
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._dropping: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Build the gradient worker; holds up the engine for as long.

        Raises:
            UnsupportedError: the worker's weights cannot be shared; the message says why.
        """
        reason = await self._call("start_gradients", *self._start)
        if reason is not None:
            raise UnsupportedError(f"no gradient worker on vLLM's weights: {reason}")

    async def raw_states(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return uncentred final hidden states at the prompts' last tokens, (B, d)."""
        plain = [SteeredPrompt(tuple(prompt)) for prompt in prompts]
        (states,) = await self._result({"method": "raw_states", "prompts": _packed(plain)})
        return states

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        """Return what each label is worth, (B,)."""
        job = {"method": "log_likelihood", "prompts": _packed(prompts), "labels": _plain(labels)}
        (values,) = await self._result(job)
        return values

    async def latent_gradient(
        self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label], weights: Sequence[float]
    ) -> LatentGradient:
        """Return what each label is worth, (B,), and the weighted gradients by latents, (B, L, d)."""
        job = {
            "method": "latent_gradient",
            "prompts": _packed(prompts),
            "labels": _plain(labels),
            "weights": [float(weight) for weight in weights],
        }
        values, gradients = await self._result(job)
        return LatentGradient(values, gradients)

    async def close(self) -> None:
        """Drop the gradient worker; an engine that is gone took it along."""
        with suppress(EngineError):
            await self._call("stop_gradients")

    async def _result(self, job: dict[str, Any]) -> list[torch.Tensor]:
        async with self._turn:
            job_id = await self._call("submit_gradient_job", job)
            try:
                outcome = await self._outcome(job_id)
            except BaseException:
                self._drop(job_id)
                raise
        if "error" in outcome:
            raise error_named(*outcome["error"], where="the gradient worker in vLLM's worker")
        return [_tensor(shape, data) for shape, data in outcome["arrays"]]

    async def _outcome(self, job_id: str) -> dict[str, Any]:
        deadline, pause = time.monotonic() + self._timeout_s, _FIRST_PAUSE_S
        while time.monotonic() < deadline:
            await asyncio.sleep(pause)
            outcome: dict[str, Any] | None = await self._call("poll_gradient_job", job_id)
            if outcome is not None:
                return outcome
            pause = min(1.5 * pause, _LONGEST_PAUSE_S)
        raise EngineError(f"the gradient worker did not answer within {self._timeout_s:.0f} s")

    def _drop(self, job_id: str) -> None:
        """Have a job forgotten without waiting: the caller may be cancelled."""

        async def drop() -> None:
            with suppress(EngineError):
                await self._call("drop_gradient_job", job_id)

        task = asyncio.create_task(drop())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def _call(self, method: str, *arguments: Any) -> Any:
        with translated():
            (answer, *_) = await self._llm.collective_rpc(method, args=arguments)
        return answer


def _packed(prompts: Sequence[SteeredPrompt]) -> list[list[Any]]:
    return [
        [
            [int(token) for token in prompt.token_ids],
            None if prompt.latent is None else prompt.latent.detach().float().contiguous().numpy().tobytes(),
            prompt.position,
        ]
        for prompt in prompts
    ]


def _plain(labels: Sequence[Label]) -> list[list[Any]]:
    return [
        [
            [[int(token) for token in answer] for answer in label.answers],
            [float(probability) for probability in label.probabilities],
            list(label.choices),
        ]
        for label in labels
    ]


def _tensor(shape: Sequence[int], data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.float32).reshape(list(shape)))
