"""Telling gateways at once that the active prior changed.

Owns the Redis channel. Knows nothing of priors: a listener looks at the registry itself. A lost
message costs a moment, for gateways poll the pointer as well; so failures are only logged.
"""

import asyncio
import logging
from collections.abc import Callable

import redis
import redis.asyncio

from memory.tenants import BETWEEN

logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_RETRY_S = (0.5, 1.0, 2.0, 5.0)


def announce(redis_url: str, part: str) -> bool:
    """Tell listeners that the active prior of a part of a space (`memory/tenants.py`) changed.

    False, and logged, when it failed.
    """
    try:
        with redis.Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as client:
            client.publish(_channel(part), "changed")
    except (redis.RedisError, OSError, ValueError) as exc:
        logger.warning("could not announce the prior of %s: %s", part, exc)
        return False
    return True


async def listen(redis_url: str, space: str, on_change: Callable[[str | None], None]) -> None:
    """Call `on_change` at each announcement of a space's part, until cancelled; connects again when it must.

    It is given the part; None whenever the subscription starts, since messages may have been missed before.
    """
    attempt = 0

    def changed(part: str | None) -> None:
        nonlocal attempt
        attempt = 0
        try:
            on_change(part)
        except Exception:
            logger.exception("a change of the prior of %s was not taken up", part or space)

    while True:
        try:
            await _receive(redis_url, space, changed)
        except (redis.RedisError, OSError, ValueError) as exc:
            wait_s = _RETRY_S[min(attempt, len(_RETRY_S) - 1)]
            attempt += 1
            logger.warning("no signal of priors, again in %.1f s: %s", wait_s, exc)
            await asyncio.sleep(wait_s)


async def _receive(redis_url: str, space: str, changed: Callable[[str | None], None]) -> None:
    # No socket_timeout: silence is the normal state of this connection.
    client = redis.asyncio.Redis.from_url(
        redis_url, socket_connect_timeout=_TIMEOUT_S, socket_keepalive=True, health_check_interval=15
    )
    async with client, client.pubsub() as channel:
        await channel.psubscribe(f"{_channel(space)}{BETWEEN}*")
        await channel.subscribe(_channel(space))
        async for message in channel.listen():
            if message["type"] == "subscribe":
                changed(None)
            elif message["type"] != "psubscribe":
                changed(message["channel"].decode().removeprefix(_channel("")))


def _channel(part: str) -> str:
    return f"latentevolve:priors:{part}"
