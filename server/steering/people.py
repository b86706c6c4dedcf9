"""What people say of answers, as evidence about rows of a prior (docs/evidence.md).

Owns how far what people call right or wrong bounds a difference that was measured. It takes from what a row
has proved and adds nothing to it: who says something, and of which answers, is not left to chance. Knows
nothing of HTTP or of how feedback is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from memory.episode import GOOD, prompt_digest
from memory.state import Feedback
from model.final_answer import final_answer
from server.steering.active_prior import PriorsOf
from server.steering.outcome import Answer, Asked
from server.steering.traces import Exchange, TraceLog


@dataclass(frozen=True)
class Graded:
    """What answers said that were compared on one prompt."""

    row: tuple[str | None, ...]
    """Final answers with the row; None of one that could not be given, or says nothing to compare."""
    baseline: tuple[str | None, ...]

    def most(self, said: "Word") -> float:
        """Return the most that the row can be better by, in [-1, 1], if this is so."""
        if said.right:
            return self._difference(said.answer)
        others = {one for one in (*self.row, *self.baseline) if one is not None} - {said.answer}
        return max(0.0, *map(self._difference, others))

    def _difference(self, right: str) -> float:
        return self.row.count(right) / len(self.row) - self.baseline.count(right) / len(self.baseline)

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return {"row": list(self.row), "baseline": list(self.baseline)}

    @classmethod
    def of_json(cls, values: Mapping[str, Sequence[str | None]]) -> Self:
        """Return what was said."""
        return cls(tuple(values["row"]), tuple(values["baseline"]))


@dataclass(frozen=True)
class Word:
    """That a final answer is right, or wrong."""

    answer: str
    right: bool

    @classmethod
    def of(cls, said: Feedback, asked: Asked, answer: Answer | None) -> Self | None:
        """Return what feedback says of which final answer; None: nothing that can be compared."""
        if said.metric_name == "comment":
            return None
        text, right = said.value, True
        if said.metric_name == "rating":
            text, right = (answer.text if answer else ""), float(said.value) >= GOOD
            if answer is not None and not answer.finished:
                text = ""  # nobody knows what it would have said
        final = final_answer(text, asked.choices) if isinstance(text, str) else None
        return None if final is None else cls(final, right)


class People:
    """Brings together what was measured and what people say, whichever comes first.

    Args:
        traces: Where both are kept, by the request they are about.
        priors_of: Finds whose rows were measured.
    """

    def __init__(self, traces: TraceLog, priors_of: PriorsOf) -> None:
        self._traces, self._priors_of = traces, priors_of

    async def measured(self, trace_id: str, tenant: str, graded: Mapping[str, Graded]) -> None:
        """Keep what the graded answers said, by the row, and take what people have said already.

        Raises:
            StateUnavailableError, NoRoomError: what people said may not be noted yet.
        """
        self._traces.graded(trace_id, {row: one.to_json() for row, one in graded.items()})
        await self.spoke(trace_id, tenant)

    async def spoke(self, trace_id: str, tenant: str) -> None:
        """Let what people have said of a request's answer count for the rows that were measured on it.

        Raises:
            StateUnavailableError, NoRoomError: it is not noted; done again, it counts once.
        """
        kept = await self._traces.exchange(trace_id, tenant)
        if kept is None or kept.asked is None or not kept.graded:
            return
        words = await self._words(trace_id, kept)
        if not words:
            return
        bounds = {
            row: min(Graded.of_json(one).most(word) for word in words) for row, one in kept.graded.items()
        }
        priors = await self._priors_of(tenant)
        await priors.observe(prompt_digest(kept.asked.token_ids), bounds, "people")

    async def _words(self, trace_id: str, kept: Exchange) -> list[Word]:
        assert kept.asked is not None
        said = [Word.of(one, kept.asked, kept.answer) for one in await self._traces.feedback_on(trace_id)]
        return [word for word in said if word is not None]
