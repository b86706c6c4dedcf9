"""The experiment on steering: who is held out, what comes of both arms, and whether steering is on.

Owns the assignment, what is still awaited of requests, and the looks at what is known. What that says is
`memory/experiment.py`'s. Knows nothing of how requests are steered.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from memory.episode import LatentMemoryError
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
_UNTOUCHED = Switch()


@dataclass(frozen=True)
class _Awaited:
    """What is known of a request that is not yet compared."""

    tenant: str
    assignment: Assignment
    choices: tuple[str, ...] | None
    begun: float
    said: str | None = None
    """What the answer that the client got says in the end; None: not known, or nothing."""
    answered: bool = False
    agreed: str | None = None
    """What samples agree on; None: not known."""


def _nothing() -> dict[Metric, Comparison]:
    return {metric: Comparison(metric) for metric in METRICS}


@dataclass(frozen=True)
class Known:
    """What is known of a tenant's experiment."""

    share: float
    switch: Switch = _UNTOUCHED
    comparisons: Mapping[Metric, Comparison] = field(default_factory=_nothing)


class Experiment:
    """Holds out a share of each tenant's requests, notes what comes of both arms, and turns steering off.

    Args:
        experiments: Where values and switches are kept, of all gateways.
        share: Of units that are held out; 0: none, and nothing is noted.
        poll_s: How often it is looked at what other gateways have noted and switched.
    """

    def __init__(self, experiments: Experiments, share: float, *, poll_s: float = 2.0) -> None:
        self._experiments, self._share, self._poll_s = experiments, share, poll_s
        self._awaited: OrderedDict[str, _Awaited] = OrderedDict()
        self._unwritten: list[tuple[str, Value]] = []
        self._background = Background("experiment", self._write_some)
        self._seen = 0
        self._switches: dict[str, Switch] = {}
        self._comparisons: dict[str, dict[Metric, Comparison]] = {}
        self._looking = asyncio.Lock()
        self._said = ""

    def off(self, tenant: str) -> bool:
        """Return whether nothing of a tenant is steered."""
        return self._switches.get(tenant, _UNTOUCHED).off

    def known(self, tenant: str) -> Known:
        """Return what is known, as of the last look."""
        return Known(
            self._share,
            self._switches.get(tenant, _UNTOUCHED),
            self._comparisons.get(tenant) or _nothing(),
        )

    @property
    def tenants_off(self) -> int:
        """For how many tenants steering is off."""
        return sum(switch.off for switch in self._switches.values())

    def assign(self, tenant: str, who: str | None, prompt: str) -> Assignment | None:
        """Return the arm of a user, or else of a prompt; None: there is no experiment.

        The same one is always in the same arm, whatever the process, as long as the share is the same.

        Args:
            tenant: Whose request it is.
            who: What names the user, if anything does.
            prompt: Digest of the prompt.
        """
        if not self._share:
            return None
        named = f"user {who}" if who is not None else f"prompt {prompt}"
        digest = hashlib.sha256(f"holdout\0{tenant}\0{named}".encode(errors="replace")).hexdigest()
        held = int(digest[16:32], 16) < self._share * 2**64
        return Assignment(digest[:16], "holdout" if held else "steered")

    def begin(
        self, trace_id: str, tenant: str, assignment: Assignment, choices: tuple[str, ...] | None
    ) -> None:
        """Await what comes of a request.

        Args:
            trace_id: Of the request.
            tenant: Whose it is.
            assignment: Its arm.
            choices: What its answer is held to, if to any.
        """
        self._awaited[trace_id] = _Awaited(tenant, assignment, choices, time.perf_counter())
        while len(self._awaited) > MOST_AWAITED:
            self._awaited.popitem(last=False)

    def answered(self, trace_id: str, answer: Answer) -> None:
        """Note the whole answer that the client got, at the moment when it was there."""
        known = self._awaited.get(trace_id)
        if known is None or known.answered:
            return
        self._note("tokens", known.tenant, known.assignment, len(answer.token_ids))
        self._note("latency_s", known.tenant, known.assignment, time.perf_counter() - known.begun)
        said = final_answer(answer.text, known.choices) if answer.finished else None
        self._settle(trace_id, replace(known, said=said, answered=True))

    def agreed(self, trace_id: str, text: str) -> None:
        """Note an answer that says what samples agree on."""
        known = self._awaited.get(trace_id)
        if known is not None:
            self._settle(trace_id, replace(known, agreed=final_answer(text, known.choices)))

    def rated(self, tenant: str, assignment: Assignment, value: float) -> None:
        """Note what somebody said of an answer, in [0, 1]."""
        self._note("rating", tenant, assignment, value)

    def _settle(self, trace_id: str, known: _Awaited) -> None:
        if not known.answered or known.agreed is None:
            self._awaited[trace_id] = known
            return
        del self._awaited[trace_id]
        self._note("agreement", known.tenant, known.assignment, float(known.said == known.agreed))

    def _note(self, metric: Metric, tenant: str, assignment: Assignment, value: float) -> None:
        if self._share and len(self._unwritten) < MOST_UNWRITTEN:
            noted = Value(metric, assignment.arm, assignment.unit, float(value))
            self._unwritten.append((tenant, noted))
            self._background.wake()

    async def _write_some(self) -> bool:
        batch, self._unwritten = self._unwritten[:_BATCH], self._unwritten[_BATCH:]
        if not batch:
            return False
        by_tenant: dict[str, list[Value]] = {}
        for tenant, value in batch:
            by_tenant.setdefault(tenant, []).append(value)
        for tenant, values in by_tenant.items():
            try:
                await asyncio.to_thread(self._experiments.note, tenant, values)
            except LatentMemoryError as error:
                self._complain(f"{len(values)} values are not noted: {error}")
        return True

    async def look(self) -> None:
        """Look at what was noted and switched, by any gateway, and turn steering off where it is due.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be read, or written.
        """
        async with self._looking:
            switches = await asyncio.to_thread(self._experiments.switches)
            changed = self._take(await asyncio.to_thread(self._experiments.values, self._seen))
            for tenant, switch in switches.items():
                await self._switch(tenant, switch)
            for tenant in changed if self._share else ():
                why = None if self.off(tenant) else harm(self.known(tenant).comparisons.values())
                if why is not None:
                    await self._turn(tenant, Switch(True, "evidence", why))

    async def turn(self, tenant: str, switch: Switch) -> Known:
        """Turn steering off or on, as an operator, and return what is known then.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        async with self._looking:
            await self._turn(tenant, switch)
        return self.known(tenant)

    async def _turn(self, tenant: str, switch: Switch) -> None:
        await self._switch(tenant, await asyncio.to_thread(self._experiments.turn, tenant, switch))

    def _take(self, values: Iterable[tuple[int, str, Value]]) -> set[str]:
        """Add values to what is known, and return whose they are."""
        tenants = set()
        for number, tenant, value in values:
            self._seen = max(self._seen, number)
            self._comparisons.setdefault(tenant, _nothing())[value.metric].add(value)
            tenants.add(tenant)
        return tenants

    async def _switch(self, tenant: str, switch: Switch) -> None:
        """Take over how steering is turned; turned on, the experiment has begun anew."""
        before = self._switches.get(tenant, _UNTOUCHED)
        if switch.at == before.at:
            return
        self._switches[tenant] = switch
        if not switch.off:
            self._comparisons.pop(tenant, None)
            values = await asyncio.to_thread(self._experiments.values, 0, tenant)
            self._take(one for one in values if one[0] <= self._seen)
        if switch.off != before.off:
            logger.warning(
                "steering of tenant %s is %s by %s%s",
                tenant,
                "off" if switch.off else "on again",
                "the evidence" if switch.cause == "evidence" else "an operator",
                f": {switch.message}" if switch.message else "",
            )

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
        await self._background.close(timeout_s)

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything is written; False when that took too long."""
        return await self._background.drain(timeout_s)

    def _complain(self, what: str) -> None:
        """Log a failure once, not at every look."""
        if self._said != what:
            self._said = what
            logger.error("%s", what)
