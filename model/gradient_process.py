"""The process behind the gradient worker, seen from both ends.

Owns the spawned process, its pipe, and what runs inside: it loads the model, answers one request after
the other at lower priority, ignores Ctrl-C, which is its parent's to handle, and ends when the pipe or
the parent does. Knows nothing of restarts.
"""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from model.engine import (
    EngineDeadError,
    EngineError,
    ModelUnavailableError,
    PlacementError,
    PromptTooLongError,
    SteeredPrompt,
    UnsupportedError,
)
from model.frozen_model import FrozenModel
from model.space import LatentRejectedError

_NICENESS = 5
_DEATH_TIMEOUT_S = 5.0
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        LatentRejectedError,
        ModelUnavailableError,
        PlacementError,
        PromptTooLongError,
        UnsupportedError,
        ValueError,
    )
}
"""What a gradient worker reports under its own name; anything else becomes EngineError."""


class Child:
    """A process that loads a `FrozenModel`; its first answer is the model's space.

    One thread asks and ends it; `kill` may come from any.
    """

    def __init__(self, model_arguments: dict[str, Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # A daemon of multiprocessing: ended when this process exits without ending it.
        self._process = context.Process(
            target=_serve,
            args=(theirs, os.getpid(), threads, model_arguments),
            name="gradient_worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process runs and waits for a request."""
        # A dying process closes its end of the pipe before it can be waited for.
        return self._process.is_alive() and not self._pipe.poll()

    def ask(self, request: tuple[str, tuple[Any, ...]], timeout_s: float) -> Any:
        """Send (method, arguments) and return the answer; errors as `answer`."""
        try:
            self._pipe.send(request)
        except OSError as error:
            raise EngineDeadError(self._obituary()) from error
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> Any:
        """Wait for the next answer.

        Raises:
            EngineDeadError: the process died, or did not answer in time.
            EngineError, LatentRejectedError, ValueError: what the model raised.
        """
        ready = wait([self._pipe, self._process.sentinel], timeout=timeout_s)
        if not ready:
            raise EngineDeadError(f"the gradient worker process did not answer within {timeout_s:.0f} s")
        try:
            # A process that died has closed its end, so this does not wait.
            failed, content = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineDeadError(self._obituary()) from error
        if failed:
            raise error_named(*content, where="the gradient worker process")
        return content

    def kill(self) -> None:
        """Kill the process: it holds nothing that could be lost."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, wait for its death and free what it held here."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()

    def _obituary(self) -> str:
        self._process.join(_DEATH_TIMEOUT_S)
        return f"the gradient worker process died (exit code {self._process.exitcode})"


def error_named(name: str, message: str, *, where: str) -> Exception:
    """Return the error that a gradient worker reported by its name."""
    if name in _ERRORS:
        return _ERRORS[name](message)
    return EngineError(f"{name} in {where}: {message}")


def _serve(pipe: "Connection[Any, Any]", parent: int, threads: int, model_arguments: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    os.nice(_NICENESS)
    torch.set_num_threads(threads)
    try:
        model = FrozenModel(**model_arguments)
    except Exception as error:
        pipe.send((True, (type(error).__name__, str(error))))
        return
    pipe.send((False, model.space))
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply = (False, perform(model, method, arguments))
        except Exception as error:
            reply = (True, (type(error).__name__, str(error)))
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return


def perform(model: FrozenModel, method: str, arguments: tuple[Any, ...]) -> Any:
    """Return what the model's method gives, as numpy; prompts come as (tokens, latent or None, position)."""
    if method == "raw_states":
        return model.raw_states(*arguments).numpy()
    packed, *others = arguments
    prompts = [
        SteeredPrompt(tokens, None if latent is None else torch.from_numpy(latent), position)
        for tokens, latent, position in packed
    ]
    if method == "log_likelihood":
        return model.log_likelihood(prompts, *others).numpy()
    if method == "latent_gradient":
        result = model.latent_gradient(prompts, *others)
        return result.log_likelihood.numpy(), result.gradient.numpy()
    raise UnsupportedError(f"the gradient worker knows no {method}")


def _watch(parent: int) -> None:
    """End with the parent. The pipe may not tell: other children of the parent can hold its end open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
