"""The gradient worker inside vLLM's worker, on the worker's own weights (decisions/engine.md).

Owns its thread and the jobs on it. Calls into a worker run inside the engine's loop and hold up every
request, so they only submit a job or ask for its result. Called by `SharedGradientWorker` with
`collective_rpc`; what crosses are plain values and bytes. Knows nothing of who asks.
"""

import logging
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from model.engine import Label
from model.frozen_model import FrozenModel
from model.gradient_process import perform
from server.engine.shared_weights import assemble

logger = logging.getLogger(__name__)

MAX_JOBS = 64
"""Most jobs kept until their results are fetched; the oldest is dropped first."""

Job = dict[str, Any]
"""`method` of `FrozenModel`; `prompts`, each [tokens, latent as float32 bytes or None, position or
None]; and where the method takes them `labels`, each [answers, probabilities, choices], and `weights`."""


class GradientHost:
    """Mixed into vLLM's worker class; every name must be one the worker does not have."""

    model_runner: Any

    def start_gradients(self, model_path: str, length: int, placement: str, max_model_len: int) -> str | None:
        """Build the gradient worker on the worker's weights; return why that cannot be done, None when it is.

        Any failure is an answer: the caller has another kind of gradient worker to turn to.
        """
        try:
            with torch.inference_mode(False):
                self.gradient_jobs = GradientJobs(
                    _model(self.model_runner.get_model(), model_path, length, placement, max_model_len)
                )
        except Exception as error:
            logger.debug("no gradient worker on vLLM's weights", exc_info=True)
            return f"{type(error).__name__}: {error}"
        return None

    def submit_gradient_job(self, job: Job) -> str:
        """Put a job into the gradient worker's row; return its id at once."""
        return self.gradient_jobs.submit(job)

    def poll_gradient_job(self, job_id: str) -> dict[str, Any] | None:
        """Return and forget what `GradientJobs.poll` gives, None while the job is under way."""
        return self.gradient_jobs.poll(job_id)

    def drop_gradient_job(self, job_id: str) -> None:
        """Forget a job nobody waits for; one under way is still finished."""
        self.gradient_jobs.drop(job_id)

    def stop_gradients(self) -> None:
        """Drop all jobs and the gradient worker; vLLM keeps its weights."""
        if hasattr(self, "gradient_jobs"):
            self.gradient_jobs.close()
            del self.gradient_jobs


class GradientJobs:
    """Runs jobs on `model`, one after the other, on one thread of its own."""

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._jobs: dict[str, Future[dict[str, Any]]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gradient_worker")
        device = model.network.device
        # On a GPU beside vLLM's kernels, not between them: the weights never change.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def submit(self, job: Job) -> str:
        """Return the id of a job that will run when those before it have."""
        job_id = uuid.uuid4().hex
        self._jobs[job_id] = self._thread.submit(self._run, job)
        while len(self._jobs) > MAX_JOBS:
            self.drop(next(iter(self._jobs)))
        return job_id

    def poll(self, job_id: str) -> dict[str, Any] | None:
        """Return None while the job is under way, then once its outcome.

        That is {"arrays": [[shape, float32 bytes], …]} or {"error": [name, message]}.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return {"error": ["KeyError", f"no job {job_id}"]}
        if not job.done():
            return None
        return self._jobs.pop(job_id).result()

    def drop(self, job_id: str) -> None:
        """Forget a job, and leave it out if it has not begun."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            job.cancel()

    def close(self) -> None:
        """Leave out all jobs that have not begun; does not wait."""
        self._jobs.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job) -> dict[str, Any]:
        try:
            with torch.cuda.stream(self._stream):  # None changes nothing
                result = perform(self._model, job["method"], self._arguments(job))
        except Exception as error:
            # As text: an exception keeps the tensors of the frames it passed through.
            return {"error": [type(error).__name__, str(error)]}
        arrays = result if isinstance(result, tuple) else (result,)
        return {"arrays": [[list(array.shape), array.tobytes()] for array in arrays]}

    def _arguments(self, job: Job) -> tuple[Any, ...]:
        if job["method"] == "raw_states":
            return ([tuple(tokens) for tokens, _, _ in job["prompts"]],)
        size = self._model.space.hidden_size
        prompts = [
            (
                tuple(tokens),
                None if latent is None else np.frombuffer(bytearray(latent), np.float32).reshape(-1, size),
                position,
            )
            for tokens, latent, position in job["prompts"]
        ]
        labels = [
            Label(tuple(map(tuple, answers)), tuple(probabilities), tuple(choices))
            for answers, probabilities, choices in job["labels"]
        ]
        return (prompts, labels, *([job["weights"]] if "weights" in job else []))


def _model(network: Any, model_path: str, length: int, placement: Any, max_model_len: int) -> FrozenModel:
    from transformers import AutoConfig

    shared = assemble(AutoConfig.from_pretrained(model_path), dict(network.named_parameters()))
    return FrozenModel(
        model_path, length=length, placement=placement, max_model_len=max_model_len, network=shared
    )
