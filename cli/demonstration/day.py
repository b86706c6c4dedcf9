"""A day of requests.

Owns sending questions with a few at a time and what is counted about them. The expected answers
stay here: only questions are sent.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from cli.chat import Answer, Chat
from cli.gateway import Gateway

SEARCHED = ("calibrated", "voted", "refined")
"""Modes of answers that were searched for."""


@dataclass(frozen=True)
class Reply:
    """One question, its answer and its trace."""

    question: str
    answer: Answer
    trace: dict[str, Any]

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.answer.text

    @property
    def mode(self) -> str:
        """What really ran."""
        return self.answer.headers.get("mode", "unknown")

    @property
    def reason(self) -> str:
        """Why."""
        return self.answer.headers.get("reason", "unknown")

    @property
    def similarities(self) -> list[float]:
        """Similarity of each recalled episode."""
        return [float(episode["similarity"]) for episode in self.trace.get("episodes", [])]


@dataclass
class Tally:
    """Running counts over replies."""

    replies: list[Reply] = field(default_factory=list)

    def add(self, reply: Reply) -> None:
        """Count one more reply."""
        self.replies.append(reply)

    def count(self, condition: Callable[[Reply], object]) -> int:
        """Return how many replies fulfil a condition."""
        return sum(bool(condition(reply)) for reply in self.replies)

    def rewards(self) -> tuple[float | None, float | None]:
        """Return the mean reward of the plain and of the steered answers, where both were measured."""
        pairs = [
            (float(headers["reward-before"]), float(headers["reward-after"]))
            for headers in (reply.answer.headers for reply in self.replies)
            if "reward-before" in headers and "reward-after" in headers
        ]
        if not pairs:
            return None, None
        return statistics.fmean(before for before, _ in pairs), statistics.fmean(after for _, after in pairs)

    def line(self) -> str:
        """Return the counts in one short line."""
        parts = [
            f"recalled {self.count(lambda reply: reply.similarities)}",
            f"searched {self.count(lambda reply: reply.mode in SEARCHED)}",
            f"stored {self.count(lambda reply: reply.trace.get('remembered') == 'stored')}",
        ]
        before, after = self.rewards()
        if before is not None and after is not None:
            parts.append(f"reward {before:.3f} → {after:.3f}")
        return ", ".join(parts)

    def summary(self) -> dict[str, Any]:
        """Return the counts for the report."""
        before, after = self.rewards()
        similarities = [similarity for reply in self.replies for similarity in reply.similarities]
        steering = [
            int((reply.trace.get("usage") or {}).get("generated_tokens") or 0) for reply in self.replies
        ]
        answers = [reply.answer.completion_tokens or 0 for reply in self.replies]
        # An answer that won a search is among what searching has generated.
        generated = [
            spent + (0 if spent and reply.mode in SEARCHED else own)
            for reply, spent, own in zip(self.replies, steering, answers, strict=True)
        ]
        return {
            "questions": len(self.replies),
            "by_mode": dict(Counter(reply.mode for reply in self.replies)),
            "by_reason": dict(Counter(reply.reason for reply in self.replies)),
            "recalled": self.count(lambda reply: reply.similarities),
            "similarity_mean": statistics.fmean(similarities) if similarities else None,
            "searched": self.count(lambda reply: reply.mode in SEARCHED),
            "remembered": dict(Counter(_memory(reply) for reply in self.replies)),
            "reward_before_mean": before,
            "reward_after_mean": after,
            "tokens": {
                "prompt": sum(reply.answer.prompt_tokens or 0 for reply in self.replies),
                "answers": sum(answers),
                "steering_generated": sum(steering),
                "generated": sum(generated),
            },
            "finished": self.count(lambda reply: reply.answer.finish_reason == "stop"),
            "latency_median_s": statistics.median(reply.answer.total_s for reply in self.replies),
        }


def run_day(
    chat: Chat,
    gateway: Gateway,
    questions: Sequence[str],
    choices: Sequence[Sequence[str]] = (),
    *,
    latent: Mapping[str, Any],
    max_tokens: int,
    concurrency: int,
    system: str | None = None,
    on_reply: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Ask every question, greedily, `concurrency` at a time; replies are kept in the order of questions.

    `latent` is the object of that name of each request. With `explore` in it the server samples further
    answers afterwards and measures rows that are on trial, and a question has been explored, too, before
    another one takes its turn.
    """
    settled_s = 120.0 if latent.get("explore") else 20.0

    def ask(question: str, allowed: Sequence[str]) -> Reply:
        answer = chat.ask(
            question,
            system=system,
            latent=latent,
            max_tokens=max_tokens,
            temperature=0.0,
            choices=allowed,
        )
        return Reply(question, answer, gateway.settled_trace(answer.trace_id, settled_s))

    done = Tally()
    pool = ThreadPoolExecutor(concurrency)
    try:
        futures: list[Future[Reply]] = [
            pool.submit(ask, question, allowed)
            for question, allowed in zip(questions, choices or [()] * len(questions), strict=True)
        ]
        for future in as_completed(futures):
            done.add(future.result())
            on_reply(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Tally([future.result() for future in futures])


def plain_and_low(
    chat: Chat, gateway: Gateway, prompts: Sequence[str], *, max_tokens: int, store: bool = True
) -> tuple[Tally, Tally]:
    """Return plain answers and those at effort low, made so that they can be compared byte for byte.

    One at a time: the numbers of a batched forward pass depend on what else is in the batch. And plainly
    twice, of which the second counts: the first time a prompt is computed whole, later its beginning comes
    from the prefix cache, which in bfloat16 rounds otherwise.
    """
    _, plain, low = [
        run_day(
            chat,
            gateway,
            prompts,
            latent={"effort": effort, **({} if store else {"store": False})},
            max_tokens=max_tokens,
            concurrency=1,
        )
        for effort in ("none", "none", "low")
    ]
    return plain, low


def _memory(reply: Reply) -> str:
    """Return what became of the episode and why, without the reward that some reasons name."""
    state = str(reply.trace.get("remembered", "unknown"))
    why = reply.trace.get("why_not_remembered")
    return re.sub(r" \d\.\d+ is below", " was below", f"{state}: {why}") if why else state
