"""The experiment on steering: who is held out, what comes of both arms, and whether steering is on.

Owns the assignment, what is still awaited of requests, and the looks at what is known. What that says is
`memory/experiment.py`'s. Knows nothing of how requests are steered.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from memory.episode import TENANT, LatentMemoryError
from memory.experiment import METRICS, Comparison, Experiments, Metric, Switch, Value, harm
from model.final_answer import final_answer
from server.steering.background import Background
from server.steering.outcome import Answer, Assignment

logger = logging.getLogger(__name__)

MOST_AWAITED = 4096
"""Requests whose answer or exploration is awaited; of more the oldest are given up."""
MOST_UNWRITTEN = 4096
"""Values that wait to be written; more are lost."""
_BATCH = 256


@dataclass(frozen=True)
class _Awaited:
    """What is known of a request that is not yet compared."""

    assignment: Assignment
    choices: tuple[str, ...] | None
    begun: float
    said: str | None = None
    """What the answer that the client got says in the end; None: not known, or nothing."""
    answered: bool = False
    agreed: str | None = None
    """What samples agree on; None: not known."""


@dataclass(frozen=True)
class Known:
    """What is known of the experiment."""

    share: float
    switch: Switch
    comparisons: Mapping[Metric, Comparison]


class Experiment:
    """Holds out a share of one tenant's requests, notes what comes of both arms, and turns steering off.

    Args:
        experiments: Where values and switches are kept, of all gateways.
        share: Of units that are held out; 0: none, and nothing is noted.
        tenant: Whose requests they are.
        poll_s: How often it is looked at what other gateways have noted and switched.
    """

    def __init__(
        self, experiments: Experiments, share: float, *, tenant: str = TENANT, poll_s: float = 2.0
    ) -> None:
        self._experiments, self._share, self._tenant, self._poll_s = experiments, share, tenant, poll_s
        self._awaited: OrderedDict[str, _Awaited] = OrderedDict()
        self._unwritten: list[Value] = []
        self._background = Background("experiment", self._write_some)
        self._switch = Switch()
        self._seen = 0
        self._comparisons = {metric: Comparison(metric) for metric in METRICS}
        self._looking = asyncio.Lock()
        self._said = ""

    @property
    def off(self) -> bool:
        """Whether nothing is steered."""
        return self._switch.off

    @property
    def known(self) -> Known:
        """What is known, as of the last look."""
        return Known(self._share, self._switch, self._comparisons)

    def assign(self, who: str | None, prompt: str) -> Assignment | None:
        """Return the arm of a user, or else of a prompt; None: there is no experiment.

        The same one is always in the same arm, whatever the process, as long as the share is the same.

        Args:
            who: What names the user, if anything does.
            prompt: Digest of the prompt.
        """
        if not self._share:
            return None
        named = f"user {who}" if who is not None else f"prompt {prompt}"
        digest = hashlib.sha256(f"holdout\0{self._tenant}\0{named}".encode(errors="replace")).hexdigest()
        held = int(digest[16:32], 16) < self._share * 2**64
        return Assignment(digest[:16], "holdout" if held else "steered")

    def begin(self, trace_id: str, assignment: Assignment, choices: tuple[str, ...] | None) -> None:
        """Await what comes of a request.

        Args:
            trace_id: Of the request.
            assignment: Its arm.
            choices: What its answer is held to, if to any.
        """
        self._awaited[trace_id] = _Awaited(assignment, choices, time.perf_counter())
        while len(self._awaited) > MOST_AWAITED:
            self._awaited.popitem(last=False)

    def answered(self, trace_id: str, answer: Answer) -> None:
        """Note the whole answer that the client got, at the moment when it was there."""
        known = self._awaited.get(trace_id)
        if known is None or known.answered:
            return
        self._note("tokens", known.assignment, len(answer.token_ids))
        self._note("latency_s", known.assignment, time.perf_counter() - known.begun)
        said = final_answer(answer.text, known.choices) if answer.finished else None
        self._settle(trace_id, replace(known, said=said, answered=True))

    def agreed(self, trace_id: str, text: str) -> None:
        """Note an answer that says what samples agree on."""
        known = self._awaited.get(trace_id)
        if known is not None:
            self._settle(trace_id, replace(known, agreed=final_answer(text, known.choices)))

    def give_up(self, trace_id: str) -> None:
        """Await nothing more of a request."""
        self._awaited.pop(trace_id, None)

    def rated(self, assignment: Assignment, value: float) -> None:
        """Note what somebody said of an answer, in [0, 1]."""
        self._note("rating", assignment, value)

    def _settle(self, trace_id: str, known: _Awaited) -> None:
        if not known.answered or known.agreed is None:
            self._awaited[trace_id] = known
            return
        del self._awaited[trace_id]
        self._note("agreement", known.assignment, float(known.said == known.agreed))

    def _note(self, metric: Metric, assignment: Assignment, value: float) -> None:
        if self._share and len(self._unwritten) < MOST_UNWRITTEN:
            self._unwritten.append(Value(metric, assignment.arm, assignment.unit, float(value)))
            self._background.wake()

    async def _write_some(self) -> bool:
        batch, self._unwritten = self._unwritten[:_BATCH], self._unwritten[_BATCH:]
        if not batch:
            return False
        try:
            await asyncio.to_thread(self._experiments.note, self._tenant, batch)
        except LatentMemoryError as error:
            self._complain(f"{len(batch)} values are not noted: {error}")
        return True

    async def look(self) -> None:
        """Look at what was noted and switched, by any gateway, and turn steering off where it is due.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be read, or written.
        """
        async with self._looking:
            switch = await asyncio.to_thread(self._experiments.switch, self._tenant)
            if switch.at != self._switch.at and not switch.off:  # it began anew
                self._seen, self._comparisons = 0, {metric: Comparison(metric) for metric in METRICS}
            self._tell(switch)
            new = await asyncio.to_thread(self._experiments.values, self._tenant, self._seen)
            for number, value in new:
                self._seen = number
                self._comparisons[value.metric].add(value)
            if new and self._share and not self._switch.off:
                why = harm(self._comparisons.values())
                if why is not None:
                    await self._turn(Switch(True, "evidence", why))

    async def turn(self, switch: Switch) -> Known:
        """Turn steering off or on, as an operator, and return what is known then.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        async with self._looking:
            await self._turn(switch)
        await self.look()
        return self.known

    async def _turn(self, switch: Switch) -> None:
        turned = await asyncio.to_thread(self._experiments.turn, self._tenant, switch)
        if not turned.off and turned.at != self._switch.at:
            self._seen, self._comparisons = 0, {metric: Comparison(metric) for metric in METRICS}
        self._tell(turned)

    def _tell(self, switch: Switch) -> None:
        if switch.off != self._switch.off:
            logger.warning(
                "steering of tenant %s is %s by %s%s",
                self._tenant,
                "off" if switch.off else "on again",
                "the evidence" if switch.cause == "evidence" else "an operator",
                f": {switch.message}" if switch.message else "",
            )
        self._switch = switch

    def start(self) -> None:
        """Begin to write. Needs a running event loop."""
        self._background.start()

    async def watch(self) -> None:
        """Look until cancelled. While the state does not answer, what was known holds."""
        while True:
            try:
                await self.look()
                self._said = ""
            except LatentMemoryError as error:
                self._complain(f"no look at the experiment: {error}")
            except Exception:
                logger.exception("looking at the experiment failed")
            await asyncio.sleep(self._poll_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most so long, and stop."""
        with suppress(LatentMemoryError):
            await self._background.close(timeout_s)

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything is written; False when that took too long."""
        return await self._background.drain(timeout_s)

    def _complain(self, what: str) -> None:
        """Log a failure once, not at every look."""
        if self._said != what:
            self._said = what
            logger.error("%s", what)
