"""The part of us that runs inside vLLM's workers.

Owns the final hidden states of requests that ask for a retrieval key, the model's input embeddings
and head, and the end of an engine whose front end was killed; the twin's part comes from `TwinHost`.
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
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from server.engine.prefix_cache import share_prefixes
from server.engine.twin_host import TwinHost

KEY_REQUEST = "latentkey."
"""Prefix of the ids of requests whose final hidden state is kept."""
KEY_ID_LENGTH = len(KEY_REQUEST) + 32
"""Prefix and 32 hex digits; vLLM appends characters of its own to every request id."""
MAX_STATES = 1024
"""Most states kept until they are fetched; the oldest is dropped first."""
_ROWS_OF_LOGITS = 32
"""States that are read by the head at once: each takes a row of the whole vocabulary."""
_WATCH_S = 1.0


class StateCatcher(TwinHost):
    """Mixed into vLLM's worker class; every name must be one the worker does not have."""

    model_runner: Any

    def catch_key_states(self) -> None:
        """Start keeping final hidden states, and share prefixes; again is harmless."""
        share_prefixes()
        if hasattr(self, "key_states"):
            return
        self.key_states: OrderedDict[str, torch.Tensor] = OrderedDict()
        runner = self.model_runner
        sample_tokens = runner.sample_tokens

        def sample_and_keep(*args: Any, **kwargs: Any) -> Any:
            state = runner.execute_model_state
            if state is not None:
                keep_rows(self.key_states, runner.input_batch.req_ids, state.sample_hidden_states)
            return sample_tokens(*args, **kwargs)

        runner.sample_tokens = sample_and_keep

    def take_key_states(self, request_ids: Sequence[str]) -> dict[str, bytes]:
        """Return and forget states, float32 bytes of length 4·d, of the requests that have one."""
        found = {id: self.key_states.pop(id, None) for id in request_ids}
        return {id: _floats(state) for id, state in found.items() if state is not None}

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
        found: list[list[float]] = []
        for start in range(0, len(allowed), _ROWS_OF_LOGITS):
            some = allowed[start : start + _ROWS_OF_LOGITS]
            logits = self._key_logits(states[start * size : (start + len(some)) * size])
            if logits is None:
                return []
            logits = logits.float()
            totals = logits.logsumexp(dim=1)
            for row, tokens in enumerate(some):
                chosen = logits[row, list(tokens)]
                found.append((chosen.log_softmax(dim=0) if held else chosen - totals[row]).tolist())
        return found

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


def keep_rows(
    states: "OrderedDict[str, torch.Tensor]", request_ids: Sequence[str], rows: torch.Tensor
) -> None:
    """Keep the rows, (n, d), of key requests in `states`, by the id they were submitted with.

    Every step overwrites the one before: under chunked prefill only the last step's row stands for
    the whole prompt. A batch whose rows do not match its requests (speculative decoding) is left out.
    """
    if len(request_ids) != len(rows):
        return
    for row, request_id in enumerate(request_ids):
        if request_id.startswith(KEY_REQUEST):
            key_id = request_id[:KEY_ID_LENGTH]
            states[key_id] = rows[row].detach().to("cpu", torch.float32, copy=True)
            states.move_to_end(key_id)
            while len(states) > MAX_STATES:
                states.popitem(last=False)


def _floats(values: torch.Tensor) -> bytes:
    return bytes(values.to("cpu", torch.float32).contiguous().numpy().tobytes())


def _end_after(process: psutil.Process, pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it went between the two questions
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_WATCH_S)
    os.kill(pid, signal.SIGKILL)
