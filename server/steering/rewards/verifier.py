"""Scores from outside: an HTTP callback that the operator configures (docs/api.md has its contract).

Owns the request, the reading of the reply, retries, and what is said when none comes. A verifier that
does not answer takes nothing from the client: the signal is left out, and that is counted.
"""

import asyncio
import json
import logging
import random
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from config.loopback import is_loopback
from config.settings import Settings
from model.engine import Generation
from server.steering.breaker import Breaker, CircuitOpenError
from server.steering.metrics import Metrics
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.reward import SignalUnavailableError

logger = logging.getLogger(__name__)

FAILURES = 3
"""Failed calls in a row after which none is made for a while."""
PAUSE_S = 30.0
FIRST_BACKOFF_S = 0.1
"""Longest wait before the first retry; it doubles with each."""
REPLY_BYTES = 4096
BYTES_PER_SCORE = 64
"""A reply may be as long as REPLY_BYTES and so many bytes per answer."""

Failure = Literal["timeout", "unreachable", "status", "bad-reply"]


class VerifierError(Exception):
    """A call failed. `again`: another try may help; `kind`: what to say of it only once."""

    def __init__(self, failure: Failure, message: str, *, again: bool = False, kind: str = "") -> None:
        super().__init__(message)
        self.failure, self.again, self.kind = failure, again, kind or failure


class Verifier:
    """Scores of a service over HTTP, all answers of a batch in one POST.

    Args:
        url: Where to post; user and password in it become basic authentication.
        timeout_s: Longest one try may take, its reply included.
        retries: Tries after the first, on connection errors and statuses 429 and 5xx.
        breaker: None: one of the module's constants.
        backoff_s: Longest wait before the first retry.
    """

    name = "verifier"

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        retries: int,
        metrics: Metrics,
        breaker: Breaker | None = None,
        backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self._url, self._timeout_s, self._retries = url, timeout_s, retries
        self._calls = metrics.verifier_calls
        self._breaker = breaker or Breaker(failures=FAILURES, pause_s=PAUSE_S)
        self._backoff_s = backoff_s
        self._where = urlsplit(url).netloc.rpartition("@")[2]  # without credentials, for the log
        self._told: set[str] = set()
        # No connection outlives its call, so there is nothing to close, and none that went stale is used.
        self._http = httpx.AsyncClient(
            timeout=None,  # each try runs under its own
            follow_redirects=False,
            trust_env=not is_loopback(url),  # a proxy would look for the service on its own machine
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"accept": "application/json", "accept-encoding": "identity"},
        )

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> "Verifier | None":
        """Return the verifier of the settings; None when they give no URL."""
        if settings.verifier_url is None:
            return None
        return cls(
            settings.verifier_url,
            timeout_s=settings.verifier_timeout_s,
            retries=settings.verifier_retries,
            metrics=metrics,
        )

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one score per answer; None where the verifier has none.

        Raises:
            SignalUnavailableError: it does not answer, or not as agreed.
        """
        # Escaped, for text of clients may hold surrogates that UTF-8 has no bytes for.
        body = json.dumps(
            {
                "question": prompt.question,
                "prompt": prompt.text,
                "answers": [answer.text for answer in answers],
            }
        ).encode()
        was_open = self._breaker.is_open
        try:
            with self._breaker.call():
                scores = await self._ask(body, len(answers))
        except CircuitOpenError as error:
            self._calls.labels("not-asked").inc()
            raise SignalUnavailableError(self.name) from error
        except VerifierError as error:
            self._calls.labels(error.failure).inc()
            self._tell(error)
            if self._breaker.is_open and not was_open:
                logger.warning("the verifier is left alone after %d failures in a row", FAILURES)
            raise SignalUnavailableError(self.name) from error
        self._calls.labels("scored").inc()
        if was_open:
            logger.info("the verifier at %s answers again", self._where)
        return scores

    def _tell(self, error: VerifierError) -> None:
        """Log a failure; of replies that break the contract only the first of each kind."""
        repeated = error.failure == "bad-reply" and error.kind in self._told
        self._told.add(error.kind)
        logger.log(
            logging.DEBUG if repeated else logging.WARNING,
            "the verifier at %s does not score (%s): %s",
            self._where,
            error.kind,
            error,
        )

    async def _ask(self, body: bytes, count: int) -> list[float | None]:
        longest = self._backoff_s
        for left in reversed(range(self._retries + 1)):
            try:
                return scores_of(await self._post(body, count), count)
            except VerifierError as error:
                if not (error.again and left):
                    raise
            # Anywhere up to the limit, so that gateways that failed together do not come back together.
            await asyncio.sleep(random.uniform(longest / 2, longest))
            longest *= 2
        raise AssertionError("the last try returns or raises")

    async def _post(self, body: bytes, count: int) -> bytes:
        """Return the reply's body."""
        limit = REPLY_BYTES + BYTES_PER_SCORE * count
        reply = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(
                    "POST", self._url, content=body, headers={"content-type": "application/json"}
                ) as response,
            ):
                status = response.status_code
                if status != 200:
                    again = status == 429 or status >= 500
                    raise VerifierError("status", f"status {status}", again=again)
                async for chunk in response.aiter_raw():  # never decompressed: that has no bound
                    reply += chunk
                    if len(reply) > limit:
                        raise VerifierError("bad-reply", f"longer than {limit} bytes", kind="too-long")
        except TimeoutError as error:
            raise VerifierError("timeout", f"no reply within {self._timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise VerifierError("unreachable", type(error).__name__, again=True) from error
        return bytes(reply)


def scores_of(reply: bytes, count: int) -> list[float | None]:
    """Return the scores of a reply.

    Raises:
        VerifierError: it is not `{"scores": [...]}` with `count` numbers in [0, 1] or nulls.
    """
    try:
        parsed: Any = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise VerifierError("bad-reply", "the reply is not JSON", kind="not-json") from error
    scores = parsed.get("scores") if isinstance(parsed, dict) else None
    if not isinstance(scores, list):
        raise VerifierError("bad-reply", 'the reply has no list "scores"', kind="no-scores")
    if len(scores) != count:
        message = f"{len(scores)} scores for {count} answers"
        raise VerifierError("bad-reply", message, kind="wrong-count")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float | None):
            raise VerifierError("bad-reply", "a score is neither a number nor null", kind="not-a-number")
        if score is not None and not 0 <= score <= 1:  # nor is NaN
            raise VerifierError("bad-reply", "a score is not within 0 and 1", kind="out-of-range")
    return [None if score is None else float(score) for score in scores]
