"""The part of us that runs inside vLLM's workers.

Owns the final hidden states of requests that ask for a retrieval key, which leave with the step's own output,
seeds that hold for prompts which are read in parts, the model's input embeddings and head, and the end of an
engine whose front end was killed; what computes gradients comes from `GradientHost`.
Imported by vLLM by name (`worker_extension_cls`); its methods are called with `collective_rpc`. Knows
nothing of prompts, of how keys are centred, or of steering.

The states come from between `execute_model` and `sample_tokens` of vLLM's model runner (V1), where
row i of `sample_hidden_states` belongs to request i of the batch. `compute_logits` would see the same
rows, but also those of prompt log-probabilities, which belong to one request alone.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch.nn.functional import pad

from server.engine.gradient_host import GradientHost
from server.engine.latent_rows import take_rows_alone
from server.engine.prefix_cache import share_prefixes

KEY_REQUEST = "latentkey."
"""Prefix of the ids of requests that are answered with their final hidden state."""
_ROWS_OF_LOGITS = 32
"""States that are read by the head at once: each takes a row of the whole vocabulary."""
_WATCH_S = 1.0


class StateCatcher(GradientHost):
    """Mixed into vLLM's worker class; every name must be one the worker does not have."""

    model_runner: Any

    def hook_into_engine(self) -> bool:
        """Answer key requests with their states, share prefixes and take a latent's rows alone from now on.

        The last two are done where the engine schedules in this process. Again is harmless.

        Returns:
            Whether the engine schedules in this process.
        """
        self._answer_with_states()
        self._keep_lists_apart()
        share_prefixes()
        return take_rows_alone()

    def _answer_with_states(self) -> None:
        """Wrap the drawing of tokens: states leave with them, and a prompt in parts draws once."""
        runner = self.model_runner
        if hasattr(runner, "sample_without_states"):
            return
        sample_tokens = runner.sample_without_states = runner.sample_tokens

        def sample_with_states(*args: Any, **kwargs: Any) -> Any:
            state = runner.execute_model_state
            if state is None:
                return sample_tokens(*args, **kwargs)
            ids = runner.input_batch.req_ids
            unfinished = runner.discard_request_mask.np[: len(ids)]
            rows = rows_of_keys(ids, unfinished, state.sample_hidden_states)
            with undrawn(runner.input_batch.generators, unfinished):
                output = sample_tokens(*args, **kwargs)
            if rows is not None:
                # With asynchronous scheduling the output is wrapped in what waits for the sampled tokens.
                getattr(output, "_model_runner_output", output).pooler_output = rows
            return output

        runner.sample_tokens = sample_with_states

    def _keep_lists_apart(self) -> None:
        """Leave each request of a batch its own list of log-probabilities.

        Where one asks for those of tokens that it names, vLLM takes their lists away from all others.
        """
        runner = self.model_runner
        sampler = getattr(runner, "sampler", None)
        if sampler is None or hasattr(sampler, "named_without_others"):
            return
        named = sampler.named_without_others = sampler.gather_specific_token_logprobs

        def apart(logs: torch.Tensor, wanted: Mapping[int, Sequence[int]], sampled: torch.Tensor) -> Any:
            found, most = named(logs, wanted, sampled), runner.input_batch.max_num_logprobs
            if found is None or most is None or most < 1:  # the sampled token is in every list
                return found
            return beside(found, sampler.gather_logprobs(logs, most, token_ids=sampled), wanted)

        sampler.gather_specific_token_logprobs = apart

    def embed_latent_tokens(self, token_ids: Sequence[int]) -> bytes:
        """Return the input embeddings of tokens as float32 bytes, (n, d) row by row."""
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=self.model_runner.device)
        with torch.inference_mode():
            rows = self.model_runner.get_model().embed_input_ids(ids)
        return _floats(rows)

    def decode_key_states(self, states: bytes) -> list[int]:
        """Return the likeliest next token of each state, given as float32 bytes of (n, d)."""
        logits = self._key_logits(states)
        return [] if logits is None else [int(token) for token in logits.argmax(dim=-1)]

    def draw_from_key_states(
        self, states: bytes, allowed: Sequence[Sequence[int]], held: bool
    ) -> list[list[float]]:
        """Return log-probabilities of the tokens that are `allowed` after each state, (n, d).

        Held to them, they are the only ones that there are.
        """
        size = 4 * self.model_runner.model_config.get_hidden_size()
        logs: list[list[float]] = []
        for start in range(0, len(allowed), _ROWS_OF_LOGITS):
            some = allowed[start : start + _ROWS_OF_LOGITS]
            logits = self._key_logits(states[start * size : (start + len(some)) * size])
            if logits is None:
                return []
            logits = logits.float()
            totals = logits.logsumexp(dim=1)
            for row, tokens in enumerate(some):
                chosen = logits[row, list(tokens)]
                logs.append((chosen.log_softmax(dim=0) if held else chosen - totals[row]).tolist())
        return logs

    def _key_logits(self, states: bytes) -> torch.Tensor | None:
        """Return what the head reads from states, (n, V); None in workers that have no head."""
        size = self.model_runner.model_config.get_hidden_size()
        rows = torch.frombuffer(bytearray(states), dtype=torch.float32).reshape(-1, size)
        with torch.inference_mode():
            logits: torch.Tensor | None = self.model_runner.get_model().compute_logits(
                rows.to(self.model_runner.device, self.model_runner.dtype)
            )
        return logits

    def end_with_front_end(self, pid: int) -> None:
        """End the engine soon after process `pid` was killed; vLLM itself would go on without it.

        On another machine, where `pid` is none of the processes above this one, do nothing.
        """
        front_end = next((parent for parent in psutil.Process().parents() if parent.pid == pid), None)
        if front_end is not None:
            # Workers end with the engine core, whose children they are.
            engine_core = os.getpid() if os.getppid() == pid else os.getppid()
            threading.Thread(target=_end_after, args=(front_end, engine_core), daemon=True).start()


def rows_of_keys(
    request_ids: Sequence[str], unfinished: Sequence[bool], rows: torch.Tensor
) -> list[torch.Tensor | None] | None:
    """Return the row, (d,) float32 on the CPU, of each key request and None of others; None without any.

    Args:
        request_ids: The batch's; vLLM appends characters of its own to every id.
        unfinished: Whether more of the request's prompt is to come: under chunked prefill only the last
            step's row stands for the whole prompt.
        rows: (n, d). Where they do not match the requests (speculative decoding), there are no states.
    """
    if len(request_ids) != len(rows):
        return None
    states = [
        row.detach().to("cpu", torch.float32, copy=True) if id.startswith(KEY_REQUEST) and not more else None
        for id, more, row in zip(request_ids, unfinished, rows, strict=True)
    ]
    return states if any(row is not None for row in states) else None


def beside(named: Any, likeliest: Any, wanted: Mapping[int, Sequence[int]]) -> Any:
    """Return the log-probabilities of a batch: of named tokens in rows of `wanted`, else of the likeliest.

    Args:
        named: vLLM's `LogprobsTensors`, (n, names + 1), the sampled token first.
        likeliest: The same, (n, k + 1).
        wanted: Tokens that a request has named, by its place in the batch.
    """
    rows = sorted(wanted)
    width = max(named.logprobs.shape[1], likeliest.logprobs.shape[1])

    def merged(field: str, filling: float) -> torch.Tensor:
        found, other = (
            pad(values, (0, width - values.shape[1]), value=filling)
            for values in (getattr(likeliest, field), getattr(named, field))
        )
        found[rows] = other[rows]
        return found

    return likeliest._replace(
        logprob_token_ids=merged("logprob_token_ids", 0), logprobs=merged("logprobs", -torch.inf)
    )


@contextlib.contextmanager
def undrawn(generators: dict[int, torch.Generator], unfinished: Sequence[bool]) -> Iterator[None]:
    """Let requests of whose prompt more is to come draw from no generator of their own.

    vLLM draws a token for them, too, throws it away and turns the generator back; one on the CPU cannot be
    turned back, and that ended the engine.

    Args:
        generators: The batch's, of requests with a seed, by their place in it.
        unfinished: Whether more of the request's prompt is to come.
    """
    aside = {at: generators.pop(at) for at in [*generators] if unfinished[at]}
    try:
        yield
    finally:
        generators.update(aside)


def _floats(values: torch.Tensor) -> bytes:
    return bytes(values.to("cpu", torch.float32).contiguous().numpy().tobytes())


def _end_after(process: psutil.Process, pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it went between the two questions
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_WATCH_S)
    os.kill(pid, signal.SIGKILL)
