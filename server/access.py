"""Who asks, what they may do, and how often.

Owns the check of a token and what is remembered of it for a moment, the operator's key, and rate limits.
Knows nothing of HTTP or of what routes ask for (`server/api/scopes.py`).

A token is verified once, which is slow on purpose, and known by its digest from then on; the row behind it is
read again whenever it was last read some seconds ago. So a key that is revoked or rotated, by any gateway, is
refused within `FRESH_S`.
"""

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from config.settings import Settings
from memory.api_keys import SCOPES, ApiKey, ApiKeys, Scope, check_rate_limit, id_of, is_token_of
from memory.database import StateUnavailableError
from memory.episode import TENANT, now
from server.errors import ForbiddenError, TooManyRequestsError, UnauthorizedError, UnavailableError
from server.steering.breaker import Breaker, CircuitOpenError

logger = logging.getLogger(__name__)

FRESH_S = 2.0
"""How long what was read of a key is believed."""
STALE_S = 300.0
"""How long it is believed while the state does not answer, which refuses nobody at once."""
WAIT_S = 1.0
"""How long a request waits for the state where its key was known before."""
MOST_KNOWN = 4096
"""Tokens that are remembered; of more, those that were used longest ago are verified again."""
MOST_VERIFYING = 64
"""Tokens that wait to be verified; more are turned away, for each costs memory and time."""
_SECRET = secrets.token_bytes(32)
_REDIS_S = 1.0
_REDIS_PAUSE_S = 10.0


@dataclass(frozen=True)
class Access:
    """Whoever asks: one API key, the operator, or anybody on this machine while there is no key."""

    tenant: str
    """Whose memory it works on."""
    scopes: frozenset[Scope]
    key: ApiKey | None = None
    """None: the operator."""

    @property
    def cache_salt(self) -> str | None:
        """Salt of its prompts; None: the default tenant's have what its clients say.

        Whoever does not know this process's secret cannot give another tenant's.
        """
        if self.tenant == TENANT:
            return None
        return hmac.new(_SECRET, self.tenant.encode(), hashlib.sha256).hexdigest()

    @property
    def operates(self) -> bool:
        """Whether it may do what concerns all tenants."""
        return self.tenant == TENANT and "admin" in self.scopes

    def demand(self, scope: Scope | None, *, everybody: bool = True) -> None:
        """Raise ForbiddenError unless it has a scope; `admin` is all of them, None asks for none.

        Args:
            everybody: Whether each tenant has that for itself; else only the default one has.
        """
        if scope is not None and scope not in self.scopes and "admin" not in self.scopes:
            raise ForbiddenError(f"this needs an API key of scope {scope}")
        if not everybody and self.tenant != TENANT:
            whole = "" if scope is None else f" of scope {scope}"
            raise ForbiddenError(f"this concerns all tenants: it needs an API key{whole} of tenant {TENANT}")


OPERATOR = Access(TENANT, frozenset(SCOPES))
NOBODY = Access(TENANT, frozenset())
"""Whoever asks a public route."""


@dataclass(eq=False)
class _Known:
    """A token that was verified."""

    id: str
    hash: str
    """Of the token."""
    key: ApiKey | None
    """The row as it was last read."""
    read_at: float
    reading: asyncio.Task[None] | None = None
    """Reads it again; for all that wait for that."""


class Doorman:
    """Tells who asks.

    Args:
        keys: API keys of the state.
        settings: With the operator's key, and where rates are counted.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self, keys: ApiKeys, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.keys = keys
        self._monotonic = monotonic
        self._operator = operators_digest(settings)
        if settings.api_key and self._operator is None:
            logger.warning("LATENTEVOLVE_API_KEY is one of the keys that were made: it is not the operator's")
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._exist: tuple[bool, float] = (False, float("-inf"))
        self._verifying = asyncio.Semaphore(1)
        self._waiting = 0
        self._rates = _Rates(settings.broker_url)

    async def asks_for_keys(self) -> bool:
        """Return whether a key is needed: the operator has one, or there ever was another.

        Raises:
            StateUnavailableError: it does not answer, and nothing is known.
        """
        if self._operator is not None:
            return True
        exist, read_at = self._exist
        if not exist and self._monotonic() - read_at > FRESH_S:
            exist = await asyncio.to_thread(self.keys.exist)
            self._exist = exist, self._monotonic()
        return exist

    async def admit(self, token: str | None) -> Access:
        """Return whom a token names; without any key in the world, whoever it is.

        Raises:
            UnauthorizedError: there are keys, and this is none that works.
            StateUnavailableError: it does not answer, and the token is not known.
            UnavailableError: too many unknown tokens come at once.
        """
        # Digests have one length, so that the comparison's time tells nothing of the key's.
        if token and self._operator and secrets.compare_digest(digest_of(token), self._operator):
            return OPERATOR
        if token is not None:
            key = await self._key_of(token)
            if key is not None and key.works_at(now()):
                return Access(key.tenant, frozenset(key.scopes), key)
        if not await self.asks_for_keys():
            return OPERATOR
        raise UnauthorizedError("send an API key that works as `Authorization: Bearer KEY`")

    async def count(self, access: Access) -> None:
        """Count a request.

        Raises:
            TooManyRequestsError: its key has made too many lately.
        """
        if access.key is not None and access.key.rate_limit is not None:
            await self._rates.count(access.key.id, check_rate_limit(access.key.rate_limit))

    async def close(self) -> None:
        """Give back connections."""
        await self._rates.close()

    async def _key_of(self, token: str) -> ApiKey | None:
        key_id = id_of(token)
        if key_id is None:
            return None
        digest = digest_of(token)
        known = self._known.get(digest)
        if known is None:
            return await self._verified(key_id, digest, token)
        self._known.move_to_end(digest)
        key = await self._read_again(known)
        if key is None or key.hash != known.hash:  # rotated: another token is its
            self._known.pop(digest, None)
            return None
        return key

    async def _read_again(self, known: _Known) -> ApiKey | None:
        """Return what the state says of a key, or what it said a while ago where it does not answer."""
        if self._monotonic() - known.read_at > FRESH_S:
            reading = known.reading = known.reading or asyncio.create_task(self._read(known))
            await asyncio.wait({reading}, timeout=WAIT_S)
            if reading.done():
                reading.result()
        if self._monotonic() - known.read_at > STALE_S:
            raise StateUnavailableError("it has not said for minutes whether this API key works")
        return known.key

    async def _read(self, known: _Known) -> None:
        """Note what the state says of a key, whenever it says so: as of when it was asked."""
        asked_at = self._monotonic()
        try:
            known.key = await asyncio.to_thread(self.keys.get, known.id)
            known.read_at = asked_at
        except StateUnavailableError:
            pass
        finally:
            known.reading = None

    async def _verified(self, key_id: str, digest: bytes, token: str) -> ApiKey | None:
        read_at = self._monotonic()
        key = await asyncio.to_thread(self.keys.get, key_id)
        if key is None or not key.works_at(now()):
            return None
        if self._waiting >= MOST_VERIFYING:
            raise UnavailableError("too many API keys wait to be verified; try again")
        self._waiting += 1
        try:
            async with self._verifying:  # one at a time: whoever guesses takes no more than one processor
                if not await asyncio.to_thread(is_token_of, key, token):
                    return None
        finally:
            self._waiting -= 1
        self._known[digest] = _Known(key.id, key.hash, key, read_at)
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return key


class _Rates:
    """Counts requests in a moving window: in Redis where gateways share one, else in this process."""

    def __init__(self, broker_url: str | None) -> None:
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._redis: RedisStorage | None = None
        if broker_url and broker_url.startswith(("redis://", "rediss://")):
            self._redis = RedisStorage(
                f"async+{broker_url}",
                implementation="redispy",
                wrap_exceptions=True,
                key_prefix="latentevolve:rates",
                socket_timeout=_REDIS_S,
                socket_connect_timeout=_REDIS_S,
            )
        self._shared = MovingWindowRateLimiter(self._redis) if self._redis else None
        self._breaker = Breaker(failures=1, pause_s=_REDIS_PAUSE_S)

    async def close(self) -> None:
        """Give back the connections to Redis."""
        if self._redis is not None:
            await self._redis.bridge.storage.aclose()  # type: ignore[attr-defined]

    async def count(self, name: str, limit: RateLimitItem) -> None:
        """Count one; raises TooManyRequestsError where that is too many."""
        reset_at = await self._counted(name, limit)
        if reset_at is not None:
            raise TooManyRequestsError(
                f"this API key may make {limit.amount} requests per {limit.GRANULARITY.name}; wait",
                retry_after_s=max(1, math.ceil(reset_at - time.time())),
            )

    async def _counted(self, name: str, limit: RateLimitItem) -> float | None:
        """Count one; return when there is room again where that is too many."""
        if self._shared is not None:
            try:
                with self._breaker.call():
                    return await _hit(self._shared, name, limit)
            except CircuitOpenError:
                pass
            except StorageError as error:
                logger.warning("rates are counted in this process alone: Redis does not answer: %s", error)
        return await _hit(self._here, name, limit)


async def _hit(limiter: MovingWindowRateLimiter, name: str, limit: RateLimitItem) -> float | None:
    if await limiter.hit(limit, name):
        return None
    return (await limiter.get_window_stats(limit, name)).reset_time


def operators_digest(settings: Settings) -> bytes | None:
    """Return what the operator's key is remembered by; None: there is none.

    The command line reads its key from the same variable. One that was made, with scopes and an end, does not
    become the operator's where a server is started with it.
    """
    token = settings.api_key
    return digest_of(token) if token and id_of(token) is None else None


def digest_of(token: str) -> bytes:
    """Return what a token is remembered by."""
    return hashlib.sha256(token.strip().encode(errors="surrogatepass")).digest()
