"""Traces of past requests.

Owns how many are kept, what of the texts behind them is, and the background writing into the state. Nothing
here blocks the event loop, and no request fails for its trace. Knows nothing of what a trace says.
"""

import asyncio
import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from memory.database import StateUnavailableError
from memory.episode import TENANT, Episode, LatentMemoryError
from memory.redaction import EVERYTHING, Redaction
from memory.state import Feedback, KeptExchange, NewTrace, State
from server.steering.background import Background
from server.steering.outcome import Answer, Asked, Trace
from server.steering.remember import Fate

logger = logging.getLogger(__name__)

_BATCH = 64


@dataclass(frozen=True)
class Exchange:
    """What was asked and answered, as far as it is kept."""

    asked: Asked | None
    answer: Answer | None
    graded: dict[str, Any] | None = None
    """What answers said that were graded, by the row that was measured."""
    prompt: str | None = None
    """Id of the prompt's episode, also where no text may be kept; None: nothing was to be kept."""


@dataclass(frozen=True)
class ListedTrace:
    """One trace of a list."""

    number: int
    """Grows from trace to trace."""
    content: dict[str, Any]
    exchange: Exchange
    rating: float | None
    """What was said of the answer last, in [0, 1]."""


class TraceLog:
    """Keeps the newest traces, those not yet written included.

    Args:
        state: Where they are written.
        limit: Most traces of a tenant in the state, of all gateways that share it, and most that wait to be
            written.
        redact: What of texts may be written.
    """

    def __init__(self, state: State, *, limit: int, redact: Redaction = EVERYTHING) -> None:
        self._state, self._limit, self._redact = state, limit, redact
        self._failing = False
        self._fresh: OrderedDict[str, Trace] = OrderedDict()
        self._changes: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, Answer] = {}
        self._graded: dict[str, dict[str, Any]] = {}
        self._background = Background("traces", self._write_some)
        self.lost = 0
        """Traces that could not be written."""

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._background.start()

    def record(self, trace: Trace) -> None:
        """Take a trace to be written and return at once."""
        self._fresh[trace.id] = trace
        while len(self._fresh) > self._limit:
            self._fresh.popitem(last=False)
            self.lost += 1
        self._background.wake()

    def answered(self, trace_id: str, answer: Answer) -> None:
        """Take the answer that was decoded for a request whose trace was recorded, and return at once."""
        if self._redact.text == "off":
            return
        self._answers[trace_id] = answer
        while len(self._answers) > self._limit:
            self._answers.pop(next(iter(self._answers)))
        self._background.wake()

    def graded(self, trace_id: str, said: dict[str, Any]) -> None:
        """Take what answers said that were graded, by the row that was measured, and return at once."""
        texts = [text for one in said.values() for side in one.values() for text in side if text is not None]
        if not self._redact.keeps(*texts):
            return
        self._graded[trace_id] = said
        while len(self._graded) > self._limit:
            self._graded.pop(next(iter(self._graded)))
        self._background.wake()

    async def feedback_on(self, trace_id: str) -> list[Feedback]:
        """Return what people said of the answer of a trace, oldest first.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        return await asyncio.to_thread(self._state.feedback_on, trace_id)

    def settle(self, episode: Episode, fate: Fate) -> None:
        """Write into the episode's trace what became of it. A listener for `Remember`."""
        if episode.trace_id is None:
            return
        changes: dict[str, Any] = {"remembered": fate}
        if fate != "stored":
            changes["why_not_remembered"] = {
                "dropped": "too many episodes were waiting",
                "failed": "the store found fault with it",
                "refused": "the disk is nearly full",
                "deleted": "it was deleted",
            }[fate]
        self.change(episode.trace_id, changes)

    def change(self, trace_id: str, changes: dict[str, Any]) -> None:
        """Write fields into a trace that was recorded before."""
        self._changes[trace_id] = self._changes.get(trace_id, {}) | changes
        self._background.wake()

    async def get(
        self, trace_id: str, *, include_latent: bool = False, tenant: str = TENANT
    ) -> dict[str, Any] | None:
        """Return a trace as JSON, with the latent's values on request; None when the tenant has none.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        try:
            known = str(uuid.UUID(trace_id)) == trace_id
        except ValueError:
            known = False
        if not known:
            return None
        changes = self._changes.get(trace_id, {})  # taken first: they may be written while the state is read
        trace = self._fresh_of(tenant, trace_id)
        if trace is not None:
            found: dict[str, Any] | None = trace.to_json()
            values = trace.outcome.latent
        else:
            found, values = await asyncio.to_thread(self._read, trace_id, include_latent, tenant)
        if found is None:
            return None
        found.update(changes | self._changes.get(trace_id, {}))
        if include_latent and values is not None:
            found["latent"]["values"] = values.tolist()
        return found

    def _fresh_of(self, tenant: str, trace_id: str) -> Trace | None:
        trace = self._fresh.get(trace_id)
        return trace if trace is not None and trace.options.tenant == tenant else None

    async def exchange(self, trace_id: str, tenant: str = TENANT) -> Exchange | None:
        """Return what a trace was asked and answered, as far as it is kept; None where the tenant has none.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        # Taken first: they may be written while the state is read.
        trace, answer = self._fresh_of(tenant, trace_id), self._answers.get(trace_id)
        graded = self._graded.get(trace_id)
        if trace is not None:
            asked, answer = trace.asked, answer or trace.answer
        else:
            found = await asyncio.to_thread(self._state.exchange, trace_id, tenant)
            if found is None:
                return None
            return self._exchange(found, answer, graded)
        return self._kept(asked.prompt if asked else None, asked, answer, graded)

    async def recent(
        self, space: str, limit: int, before: int | None = None, tenant: str = TENANT
    ) -> list[ListedTrace]:
        """Return up to `limit` written traces of a space and a tenant, newest first; `before` a number.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        found = await asyncio.to_thread(self._state.recent_traces, space, limit, before, tenant)
        return [
            ListedTrace(
                one.number,
                one.content | self._changes.get(one.content["id"], {}),
                self._exchange(one.exchange, self._answers.get(one.content["id"])),
                one.rating,
            )
            for one in found
        ]

    def _exchange(
        self, found: KeptExchange, answer: Answer | None, graded: dict[str, Any] | None = None
    ) -> Exchange:
        """Return a written exchange, with the answer that is not yet written, if any."""
        asked = Asked.of_json(found.prompt, found.asked) if found.prompt and found.asked else None
        answer = answer or (Answer.of_json(found.answer) if found.answer else None)
        return self._kept(found.prompt, asked, answer, graded or found.graded)

    def _kept(
        self,
        prompt: str | None,
        asked: Asked | None,
        answer: Answer | None,
        graded: dict[str, Any] | None,
    ) -> Exchange:
        if asked is None or not self._may_keep(asked):
            return Exchange(None, None, prompt=prompt)
        kept = answer if answer and self._redact.keeps(answer.text) else None
        return Exchange(asked, kept, graded, prompt)

    async def forget(self, prompts: Collection[str] | None, tenant: str = TENANT) -> None:
        """Keep nothing more of what was asked and answered under ids of prompts; None: all of the tenant's.

        Raises:
            StateUnavailableError, NoRoomError: nothing is forgotten.
        """
        if not await self.drain():  # what is being written would come after
            raise StateUnavailableError("traces are still being written; ask again")
        for trace in self._fresh.values():
            if trace.asked is None or trace.options.tenant != tenant:
                continue
            if prompts is None or trace.asked.prompt in prompts:
                self._fresh[trace.id] = replace(trace, asked=None)
        await asyncio.to_thread(self._state.forget_exchanges, prompts, tenant)

    async def forget_one(self, trace_id: str, tenant: str = TENANT) -> None:
        """Keep nothing more of what one request was asked and answered, and of what was said of that.

        Raises:
            StateUnavailableError, NoRoomError: nothing is forgotten.
        """
        if not await self.drain():
            raise StateUnavailableError("traces are still being written; ask again")
        await asyncio.to_thread(self._state.forget_exchange, trace_id, tenant)

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything is written; False when that took too long."""
        return await self._background.drain(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most so long, and stop."""
        await self._background.close(timeout_s)

    async def _write_some(self) -> bool:
        batch = [self._fresh[trace_id] for trace_id in list(self._fresh)[:_BATCH]]
        later = self._fresh.keys() - {trace.id for trace in batch}  # their changes wait with them
        changes = {name: change for name, change in self._changes.items() if name not in later}
        answers = {name: answer for name, answer in self._answers.items() if name not in later}
        graded = {name: said for name, said in self._graded.items() if name not in later}
        if not (batch or changes or answers or graded):
            return False
        try:
            self.lost += await asyncio.to_thread(self._write, batch, changes, answers, graded)
            self._failing = False
        except LatentMemoryError as error:
            self.lost += len(batch)
            if not self._failing:
                logger.error("no traces until the state takes them again: %s", error)
            self._failing = True
        except Exception:
            self.lost += len(batch)
            logger.exception("%d traces could not be written", len(batch))
        for trace in batch:
            self._fresh.pop(trace.id, None)
        for trace_id, change in changes.items():
            if self._changes.get(trace_id) is change:
                del self._changes[trace_id]
        for trace_id, answer in answers.items():
            if self._answers.get(trace_id) is answer:
                del self._answers[trace_id]
        for trace_id, said in graded.items():
            if self._graded.get(trace_id) is said:
                del self._graded[trace_id]
        return True

    def _may_keep(self, asked: Asked) -> bool:
        return self._redact.keeps(asked.text, *asked.choices)

    def _write(
        self,
        batch: list[Trace],
        changes: dict[str, dict[str, Any]],
        answers: dict[str, Answer],
        graded: dict[str, dict[str, Any]],
    ) -> int:
        """Write traces, and changes and answers of others; return how many are none that can be written."""
        new = []
        for trace in batch:
            content = trace.to_json() | changes.get(trace.id, {})
            try:
                json.dumps(content, allow_nan=False)
            except ValueError as error:
                logger.error("trace %s is no JSON: %s", trace.id, error)
                continue
            latent = trace.outcome.latent
            asked = trace.asked
            new.append(
                NewTrace(
                    trace.id,
                    content,
                    latent=None if latent is None else save({"latent": latent.contiguous()}),
                    prompt=asked.prompt if asked else None,
                    asked=asked.to_json() if asked and self._may_keep(asked) else None,
                    tenant=trace.options.tenant,
                )
            )
            if trace.answer is not None:
                answers.setdefault(trace.id, trace.answer)
        here = {trace.id for trace in batch}
        others = {trace_id: change for trace_id, change in changes.items() if trace_id not in here}
        said = {
            trace_id: answer.to_json()
            for trace_id, answer in answers.items()
            if self._redact.keeps(answer.text)
        }
        self._state.write_traces(new, others, self._limit, said, graded)
        return len(batch) - len(new)

    def _read(
        self, trace_id: str, include_latent: bool, tenant: str
    ) -> tuple[dict[str, Any] | None, torch.Tensor | None]:
        try:
            found = self._state.trace(trace_id, latent=include_latent, tenant=tenant)
            if found is None:
                return None, None  # never written, or deleted since
            content, latent = found
            return content, None if latent is None else load(latent)["latent"]
        except (ValueError, SafetensorError) as error:
            logger.error("trace %s cannot be read: %s", trace_id, error)
            return None, None
