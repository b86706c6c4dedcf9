"""Who asks: tokens that are verified once, keys that are revoked elsewhere, rates."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

import server.access
from config.settings import Settings
from memory.api_keys import ApiKey, ApiKeys, is_token_of
from memory.database import StateUnavailableError
from memory.episode import TENANT
from memory.state import State
from server.access import FRESH_S, STALE_S, Doorman
from server.errors import TooManyRequestsError, UnauthorizedError
from tests.redis_server import RedisServer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys(ApiKeys):
    """Keys of a state that may go away."""

    away = False

    def get(self, key_id: str):  # type: ignore[no-untyped-def]
        if self.away:
            raise StateUnavailableError("away")
        return super().get(key_id)


@asynccontextmanager
async def closed(redis: RedisServer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        redis.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    return Keys(State.in_folder(tmp_path))


@asynccontextmanager
async def doorman_of(keys: ApiKeys, clock: Clock, **settings: object) -> AsyncIterator[Doorman]:
    made = Doorman(keys, Settings(_env_file=None, **settings), monotonic=clock)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def doorman(keys: ApiKeys, clock: Clock) -> AsyncIterator[Doorman]:
    async with doorman_of(keys, clock) as made:
        yield made


async def test_a_token_is_verified_once_and_known_from_then_on(
    doorman: Doorman, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []

    def counted(key: object, token: str) -> bool:
        verified.append(token)
        return is_token_of(key, token)  # type: ignore[arg-type]

    monkeypatch.setattr(server.access, "is_token_of", counted)
    key, token = doorman.keys.create("app", ["infer"], tenant="acme")
    for _ in range(3):
        access = await doorman.admit(token)
        assert (access.tenant, access.scopes, access.key) == ("acme", {"infer"}, key)
    assert verified == [token]


@pytest.mark.parametrize("change", ["revoke", "rotate"])
async def test_a_key_that_is_changed_elsewhere_is_refused_once_what_was_read_is_old(
    keys: ApiKeys, clock: Clock, doorman: Doorman, tmp_path: Path, change: str
) -> None:
    key, token = keys.create("app", ["infer"])
    await doorman.admit(token)
    with State.in_folder(tmp_path) as other_process:
        getattr(ApiKeys(other_process), change)(key.id)
    clock.now += FRESH_S + 0.01
    for _ in range(2):
        with pytest.raises(UnauthorizedError):
            await doorman.admit(token)


async def test_what_is_read_late_is_as_old_as_its_question(
    keys: Keys, clock: Clock, doorman: Doorman, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = keys.create("app", ["infer"])
    await doorman.admit(token)
    read, go_on = keys.get, threading.Event()

    def late(key_id: str) -> ApiKey | None:
        found = read(key_id)
        go_on.wait(60)
        return found

    monkeypatch.setattr(keys, "get", late)
    monkeypatch.setattr(server.access, "WAIT_S", 0.01)
    clock.now += FRESH_S + 1
    assert (await doorman.admit(token)).key is not None, "on what was known"
    monkeypatch.undo()
    keys.revoke(key.id)
    go_on.set()
    await asyncio.sleep(0.2)
    clock.now += FRESH_S + 0.01
    with pytest.raises(UnauthorizedError):
        await doorman.admit(token)


async def test_a_rotated_key_lets_its_new_token_pass(keys: ApiKeys, clock: Clock, doorman: Doorman) -> None:
    key, first = keys.create("app", ["infer"])
    await doorman.admit(first)
    _, second = keys.rotate(key.id)
    assert (await doorman.admit(second)).key is not None
    clock.now += FRESH_S + 0.01
    assert (await doorman.admit(second)).key is not None
    with pytest.raises(UnauthorizedError):
        await doorman.admit(first)


async def test_known_keys_pass_for_a_while_without_the_state_and_unknown_ones_do_not(
    keys: Keys, clock: Clock, doorman: Doorman
) -> None:
    _, token = keys.create("app", ["infer"])
    _, other = keys.create("other", ["infer"])
    await doorman.admit(token)
    keys.away = True
    clock.now += STALE_S
    assert (await doorman.admit(token)).key is not None
    with pytest.raises(StateUnavailableError):
        await doorman.admit(other)
    clock.now += 1
    with pytest.raises(StateUnavailableError):
        await doorman.admit(token)
    keys.away = False
    assert (await doorman.admit(token)).key is not None


async def test_without_any_key_whoever_comes_is_the_operator_until_there_is_one(
    keys: ApiKeys, clock: Clock, doorman: Doorman
) -> None:
    for token in (None, "none", "le-x"):
        access = await doorman.admit(token)
        assert access.operates
        assert access.tenant == TENANT
    key, _ = keys.create("app", ["infer"])
    clock.now += FRESH_S + 0.01
    keys.revoke(key.id)
    for token in (None, "none", "le-x"):
        with pytest.raises(UnauthorizedError):
            await doorman.admit(token)


async def test_the_operators_key_is_the_settings_one(keys: ApiKeys, clock: Clock) -> None:
    async with doorman_of(keys, clock, api_key="s3cret") as doorman:
        assert (await doorman.admit("s3cret")).operates
        for token in (None, "", "s3cre", "s3cret2"):
            with pytest.raises(UnauthorizedError):
                await doorman.admit(token)
        _, token = keys.create("app", ["admin"], tenant="acme")
        assert not (await doorman.admit(token)).operates


async def test_a_key_that_was_made_does_not_become_the_operators(keys: ApiKeys, clock: Clock) -> None:
    _, token = keys.create("app", ["infer"])
    async with doorman_of(keys, clock, api_key=token) as doorman:
        assert (await doorman.admit(token)).scopes == {"infer"}
        with pytest.raises(UnauthorizedError):
            await doorman.admit(None)


async def counted(doorman: Doorman, token: str, times: int) -> int:
    """Return how many of some requests pass."""
    passed = 0
    for _ in range(times):
        with suppress(TooManyRequestsError):
            await doorman.count(await doorman.admit(token))
            passed += 1
    return passed


async def test_whoever_asks_too_often_is_told_when_to_come_again(keys: ApiKeys, doorman: Doorman) -> None:
    _, token = keys.create("app", ["infer"], rate_limit="1/hour")
    await doorman.count(await doorman.admit(token))
    with pytest.raises(TooManyRequestsError, match="1 requests per hour") as refused:
        await doorman.count(await doorman.admit(token))
    assert 3500 < refused.value.retry_after_s <= 3601


async def test_each_key_has_a_rate_of_its_own(keys: ApiKeys, doorman: Doorman) -> None:
    _, slow = keys.create("slow", ["infer"], rate_limit="3/hour")
    _, slow_too = keys.create("slow", ["infer"], rate_limit="2/hour")
    _, fast = keys.create("fast", ["infer"])
    assert await counted(doorman, slow, 6) == 3
    assert await counted(doorman, slow_too, 6) == 2
    assert await counted(doorman, fast, 20) == 20


async def test_gateways_that_share_a_redis_share_rates_and_each_counts_alone_without_it(
    keys: ApiKeys, clock: Clock, tmp_path: Path
) -> None:
    _, token = keys.create("app", ["infer"], rate_limit="4/hour")
    redis = RedisServer(tmp_path)
    redis.start()
    async with (
        closed(redis),
        doorman_of(keys, clock, broker_url=redis.url) as one,
        doorman_of(keys, clock, broker_url=redis.url) as other,
    ):
        assert await counted(one, token, 3) == 3
        assert await counted(other, token, 3) == 1
        assert await counted(one, token, 3) == 0
        redis.stop()
        assert await asyncio.wait_for(counted(one, token, 6), 60) == 4
