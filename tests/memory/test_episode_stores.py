"""One scenario on every episode store; what they answer is compared.

Qdrant Edge and qdrant-client's local mode always, a real server when QDRANT_URL is set.
"""

import base64
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_client.models import PointStruct

from memory import qdrant_store
from memory.edge_store import EdgeStore
from memory.episode import (
    Array,
    Episode,
    EpisodeRejectedError,
    StoreUnavailableError,
    new_id,
    prompt_id,
)
from memory.listing import Place, Summary
from memory.prior import Coverage
from memory.qdrant_store import QdrantStore, connect
from memory.store import EpisodeStore, Recalled, Where, recall
from tests.memory.conftest import recall_from

LENGTH, HIDDEN = 4, 32
KINDS = ["edge", "local", *(["server"] if os.environ.get("QDRANT_URL") else [])]

Make = Callable[..., Episode]
Opener = Callable[[str], EpisodeStore]


@pytest.fixture(params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens stores of one kind that share a folder, a client or a server."""
    opened: list[EpisodeStore] = []
    created: set[str] = set()
    local = QdrantClient(":memory:") if request.param == "local" else None

    def open_space(space: str) -> EpisodeStore:
        store: EpisodeStore
        size: dict[str, Any] = {"space": space, "length": LENGTH, "hidden_size": HIDDEN}
        if request.param == "edge":
            store = EdgeStore(tmp_path / space, **size)
        else:
            client = local or connect(os.environ["QDRANT_URL"], os.environ.get("QDRANT_API_KEY"))
            store = QdrantStore(client, **size)
        opened.append(store)
        created.add(f"latentevolve-{space}")
        return store

    yield open_space
    for store in opened:
        store.close()
    if request.param == "server":
        client = connect(os.environ["QDRANT_URL"], os.environ.get("QDRANT_API_KEY"))
        for name in created:
            client.delete_collection(name)
        client.close()


@pytest.fixture
def space() -> str:
    # Fresh, because a server outlives the test.
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def store(opener: Opener, space: str) -> EpisodeStore:
    return opener(space)


@pytest.fixture
def make(make_episode: Make, space: str) -> Make:
    return lambda **fields: make_episode(**({"space": space} | fields))


def near(key: Array, cosine: float) -> Array:
    """Return a key of norm 1 with the given cosine to `key`."""
    other = np.zeros_like(key)
    other[int(np.argmin(np.abs(key)))] = 1.0
    other -= (other @ key) * key
    other /= np.linalg.norm(other)
    return (cosine * key + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def same(one: Episode, other: Episode) -> bool:
    """Whether two episodes agree in every field, latents to float16 precision."""
    return (
        one.summary() == other.summary()
        and np.allclose(one.key, other.key, atol=1e-6)
        and np.array_equal(one.latent.astype(np.float16), other.latent.astype(np.float16))
    )


def ids(recalled: list[Recalled]) -> list[str]:
    return [r.episode.id for r in recalled]


def test_every_field_comes_back_as_it_was_stored(store: EpisodeStore, make: Make) -> None:
    episode = make(
        prior_version="v3",
        trace_id=new_id(),
        plain_reward=0.25,
        signals={"format": float(np.float32(0.1)), "verifier": 0.0},
        answer_token_ids=tuple(np.arange(5)),
        prompt_text="tab\tnull\x00 emoji 🧠 'quote\"",
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))),
    )
    store.add([episode])
    stored = store.get(episode.id)
    assert stored is not None
    assert same(stored, episode)
    assert stored.answer_token_ids == (0, 1, 2, 3, 4)
    assert stored.latent.dtype == stored.key.dtype == np.float32


def test_recall_is_ordered_limited_and_at_or_above_the_floor(
    store: EpisodeStore, make: Make, unit: Callable[[], Array]
) -> None:
    key = unit()
    cosines = (0.3, 0.95, 0.5999, 0.61, 1.0, 0.8)
    episodes = {c: make(key=near(key, c)) for c in cosines}
    store.add(list(episodes.values()))

    recalled = recall_from(store, key, tenant="default", k=10, floor=0.6)
    assert ids(recalled) == [episodes[c].id for c in (1.0, 0.95, 0.8, 0.61)]
    assert [r.similarity for r in recalled] == pytest.approx([1.0, 0.95, 0.8, 0.61], abs=1e-5)
    assert all(same(r.episode, episodes[c]) for r, c in zip(recalled, (1.0, 0.95, 0.8, 0.61), strict=True))
    assert ids(recall_from(store, key, tenant="default", k=2, floor=0.6)) == ids(recalled)[:2]
    assert len(recall_from(store, key, tenant="default", k=10, floor=-1.0)) == len(cosines)


def test_neighbours_tell_how_steering_went_and_only_earned_latents_are_read(
    store: EpisodeStore, make: Make, unit: Callable[[], Array]
) -> None:
    key = unit()
    plain = make(key=near(key, 0.95), latent_earned=False, start_lift=-0.25, prior_version="v2")
    earned = [make(key=near(key, cosine)) for cosine in (0.9, 0.8, 0.7)]
    store.add([plain, *earned])
    found = store.near(key, tenant="default", k=4, floor=0.0)
    assert [one.id for one in found] == [plain.id, *(episode.id for episode in earned)]
    assert (found[0].latent_earned, found[0].start_lift, found[0].prior_version) == (False, -0.25, "v2")
    assert (found[1].latent_earned, found[1].start_lift) == (True, None)
    assert ids(recall(store, found, 2)) == [episode.id for episode in earned[:2]]
    store.delete([earned[0].id])
    assert ids(recall(store, found, 2)) == [earned[1].id]
    assert recall(store, found[:1], 2) == []
    assert {e.id for e in store.fetch([plain.id, new_id(), "no-uuid"])} == {plain.id}
    assert store.fetch([]) == []


def test_floor_of_one_recalls_the_same_key(store: EpisodeStore, make: Make) -> None:
    episodes = [make() for _ in range(20)]
    store.add(episodes)
    for episode in episodes:
        assert ids(recall_from(store, episode.key, tenant="default", k=3, floor=1.0)) == [episode.id]


def test_recall_agrees_with_exact_cosines(store: EpisodeStore, make: Make, unit: Callable[[], Array]) -> None:
    episodes = [make() for _ in range(200)]
    for start in range(0, 200, 50):
        store.add(episodes[start : start + 50])
    for _ in range(5):
        key = unit()
        cosines = {e.id: float(e.key @ key) for e in episodes}
        expected = sorted((i for i in cosines if cosines[i] >= 0.1), key=lambda i: -cosines[i])[:8]
        recalled = recall_from(store, key, tenant="default", k=8, floor=0.1)
        assert ids(recalled) == expected
        assert [r.similarity for r in recalled] == pytest.approx([cosines[i] for i in expected], abs=1e-5)


def test_neighbours_that_differ_little_come_in_their_order(
    store: EpisodeStore, make: Make, unit: Callable[[], Array]
) -> None:
    key = unit()
    episodes = [make(key=near(key, 0.9 - 1e-4 * step)) for step in range(40)]
    store.add(episodes[::-1])
    found = store.near(key, tenant="default", k=8, floor=0.5)
    assert [one.id for one in found] == [episode.id for episode in episodes[:8]]


def test_an_empty_store_recalls_nothing(store: EpisodeStore, unit: Callable[[], Array]) -> None:
    assert recall_from(store, unit(), tenant="default", k=4, floor=-1.0) == []
    assert store.count() == 0
    assert list(store.scroll()) == []
    stats = store.stats()
    assert (stats.episodes, stats.reward_mean, stats.oldest, stats.newest) == (0, None, None, None)
    assert stats.reward_histogram == (0,) * 10


def test_another_tenant_is_never_recalled(store: EpisodeStore, make: Make) -> None:
    mine, theirs = make(tenant="mine"), make(tenant="theirs")
    twin = replace(mine, tenant="theirs", id=new_id("theirs"))
    store.add([mine, theirs, twin])
    assert ids(recall_from(store, mine.key, tenant="mine", k=10, floor=-1.0)) == [mine.id]
    assert ids(recall_from(store, mine.key, tenant="theirs", k=1, floor=0.9)) == [twin.id]
    assert recall_from(store, mine.key, tenant="nobody", k=10, floor=-1.0) == []
    assert [e.id for e in store.scroll(tenant="mine")] == [mine.id]
    assert (store.count(tenant="mine"), store.count(tenant="theirs"), store.count()) == (1, 2, 3)


def test_another_space_is_never_recalled(opener: Opener, make_episode: Make) -> None:
    one, other = (f"test-{uuid.uuid4().hex[:12]}" for _ in range(2))
    first, second = opener(one), opener(other)
    episode = make_episode(space=one)
    first.add([episode])
    assert recall_from(second, episode.key, tenant="default", k=4, floor=-1.0) == []
    assert second.get(episode.id) is None
    assert second.count() == 0
    with pytest.raises(EpisodeRejectedError, match="space"):
        second.add([episode])


def test_scroll_yields_all_and_only_what_was_asked(store: EpisodeStore, make: Make) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    episodes = [make(reward=i / 40, created_at=start - timedelta(seconds=i)) for i in range(40)]
    store.add(episodes)
    assert {e.id for e in store.scroll(batch=7)} == {e.id for e in episodes}
    in_one_batch = list(store.scroll(batch=100))
    assert [e.id for e in in_one_batch] == [e.id for e in reversed(episodes)]
    assert list(store.scroll(tenant="nobody")) == []
    assert all(same(a, b) for a, b in zip(in_one_batch, reversed(episodes), strict=True))


def test_count_since_a_moment_leaves_out_that_moment(store: EpisodeStore, make: Make) -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    store.add([make(created_at=moment + timedelta(microseconds=i)) for i in (-1, 0, 1)])
    assert store.count(since=moment) == 1
    assert store.count(since=moment - timedelta(microseconds=2)) == 3
    assert store.count(since=moment.astimezone(timezone(timedelta(hours=-5)))) == 1


def test_episodes_from_the_future_are_not_new_for_ever(store: EpisodeStore, make: Make) -> None:
    """The clock was ahead when they were remembered, and is right again."""
    ahead = datetime.now(UTC) + timedelta(days=400)
    store.add([make(created_at=created) for created in (ahead, datetime.now(UTC))])
    assert store.count(since=datetime.now(UTC) - timedelta(days=1)) == 1
    assert store.count() == 2


def test_outlines_tell_what_the_episodes_do(store: EpisodeStore, make: Make) -> None:
    later = START + timedelta(hours=2)
    episodes = [
        make(reward=0.25, created_at=START, seen=3, seen_at=later),
        make(reward=0.5, created_at=later, choices=("yes", "no")),
    ]
    stranger = make(tenant="other")
    store.add([*episodes, stranger])
    found = {one.id: one for one in store.outlines(Where("default"))}
    for episode in episodes:
        one = found.pop(episode.id)
        assert (one.reward, one.seen, one.created_at) == (episode.reward, episode.seen, episode.created_at)
        assert (one.seen_last, one.held_to_choices) == (episode.seen_last, bool(episode.choices))
    assert not found
    assert len(list(store.outlines())) == 3
    some = [episodes[0].id, stranger.id]
    told = [one for one in store.outlines() if one.id in some]
    assert sorted(store.outlines_of([*some, new_id(), "no id"]), key=str) == sorted(told, key=str)
    assert len(told) == 2
    assert store.outlines_of([]) == []


def listed(store: EpisodeStore, where: Where, limit: int) -> list[Summary]:
    """Return all episodes that a walk from page to page shows, which it compares with what cursors say."""
    found: list[Summary] = []
    after: Place | None = None
    while True:
        page = store.page(where, limit=limit, after=after)
        assert len(page.episodes) == limit or page.next is None
        found += page.episodes
        assert len(found) < 1000
        if page.next is None:
            return found
        after = Place.parse(page.next.cursor)
        assert after == Place.of(found[-1])


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_show_every_episode_once_newest_first(store: EpisodeStore, make: Make, limit: int) -> None:
    episodes = [make(created_at=START + timedelta(microseconds=i // 5)) for i in range(12)]
    store.add([*episodes, make(tenant="other")])
    newest = sorted(episodes, key=lambda e: (e.created_at, e.id), reverse=True)
    assert listed(store, Where("default"), limit) == [episode.summary() for episode in newest]
    assert store.page(Where("nobody"), limit=limit).episodes == []


def test_what_a_filter_names_is_what_is_listed_and_outlined(store: EpisodeStore, make: Make) -> None:
    rng = np.random.default_rng(3)
    episodes = [
        make(
            reward=int(rng.integers(5)) / 4,
            effort=str(rng.choice(["low", "medium"])),
            search=str(rng.choice(["none", "vote"])),
            tenant=str(rng.choice(["one", "two"])),
            created_at=START + timedelta(hours=int(rng.integers(4))),
        )
        for _ in range(60)
    ]
    store.add(episodes)

    def meant(where: Where, one: Episode) -> bool:
        return (
            where.tenant in (None, one.tenant)
            and (where.reward_min is None or one.reward >= where.reward_min)
            and (where.reward_max is None or one.reward <= where.reward_max)
            and where.effort in (None, one.effort)
            and where.search in (None, one.search)
            and (where.since is None or one.created_at >= where.since)
            and (where.until is None or one.created_at < where.until)
        )

    wheres = [
        Where(),
        Where(tenant="one"),
        Where(reward_min=0.5),
        Where(reward_max=0.5),
        Where(reward_min=0.25, reward_max=0.25),
        Where(effort="low"),
        Where(search="none", tenant="two"),
        Where(since=START + timedelta(hours=2)),
        Where(until=(START + timedelta(hours=2)).astimezone(timezone(timedelta(hours=5)))),
        Where("one", 0.25, 1.0, "medium", "vote", START + timedelta(hours=1), START + timedelta(hours=3)),
    ]
    for where in wheres:
        expected = {one.id for one in episodes if meant(where, one)}
        assert len(expected) > 0
        assert {one.id for one in store.outlines(where)} == expected, where
        assert {one["id"] for one in listed(store, where, 4)} == expected, where


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_a_region_names_every_episode_whose_key_lies_in_it(
    store: EpisodeStore, make: Make, unit: Callable[[], Array]
) -> None:
    centroids = np.stack([unit(), unit()])
    region = Coverage(centroids, np.array([0.5, 0.8], np.float32))
    keys = [near(centroid, cosine) for centroid in centroids for cosine in (0.99, 0.7, 0.55, 0.3, -0.5)]
    episodes = [
        make(key=key, tenant=tenant, reward=reward)
        for key in keys
        for tenant, reward in (("one", 0.2), ("one", 0.9), ("two", 0.9))
    ]
    assert store.page(Where(region=region), limit=3).episodes == []
    store.add(episodes)
    for where in (Where(region=region), Where("one", region=region), Where("one", 0.5, region=region)):
        expected = {
            one.id
            for one in episodes
            if region.covers(one.key)
            and where.tenant in (None, one.tenant)
            and one.reward >= (where.reward_min or 0)
        }
        assert 0 < len(expected) < len(episodes)
        assert {one.id for one in store.outlines(where)} == expected
        assert {one["id"] for one in listed(store, where, 2)} == expected
    nowhere = Coverage(-centroids[:1], np.array([0.99], np.float32))
    assert listed(store, Where(region=nowhere), 4) == []
    assert list(store.outlines(Where(region=nowhere))) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_over_pages_shows_once_what_is_there_all_the_time_whatever_comes_and_goes(
    store: EpisodeStore, make: Make, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> list[Episode]:
        return [make(created_at=START + timedelta(seconds=int(rng.integers(8)))) for _ in range(count)]

    there = some(30)
    store.add(there)
    always, ever = {one.id for one in there}, {one.id for one in there}
    shown: list[Place] = []
    page = store.page(Where(), limit=int(rng.integers(1, 6)))
    while True:
        shown += map(Place.of, page.episodes)
        assert len(shown) < 1000
        if page.next is None:
            break
        gone = {one.id for one in there if rng.random() < 0.05} | {page.next.id}
        store.delete(list(gone))  # the one behind which the page ended among them
        always -= gone
        new = some(int(rng.integers(3)))
        store.add(new)
        ever |= {one.id for one in new}
        page = store.page(Where(), limit=int(rng.integers(1, 6)), after=page.next)
    names = [place.id for place in shown]
    assert always <= set(names) <= ever
    assert len(set(names)) == len(names)
    assert [place.rank for place in shown] == sorted((place.rank for place in shown), reverse=True)


AGES_AGO = base64.urlsafe_b64encode(f"0001-01-01T00:00:00+14:00 {uuid.UUID(int=1)}".encode()).decode()


def test_a_cursor_finds_its_place_whatever_its_zone(store: EpisodeStore, make: Make) -> None:
    store.add([make(created_at=START), make(created_at=START + timedelta(hours=2))])
    for zone in (timedelta(seconds=1), timedelta(hours=5, minutes=30)):
        place = Place((START + timedelta(hours=1)).astimezone(timezone(zone)), new_id())
        page = store.page(Where(), limit=5, after=Place.parse(place.cursor))
        assert [Place.of(one).created_at for one in page.episodes] == [START]


@pytest.mark.parametrize(
    "cursor", ["", "x", "é", "MjAyNg==", "bm8gdGltZQ==", "MjAyNi0wMS0wMSBub3Q=", AGES_AGO]
)
def test_what_is_no_cursor_is_told_from_one(cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Place.parse(cursor)


def test_stats_count_rewards_by_tenths(store: EpisodeStore, make: Make) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    rewards = (0.0, 0.05, 0.5, 0.55, 0.9, 1.0)
    store.add([make(reward=r, created_at=start + timedelta(hours=i)) for i, r in enumerate(rewards)])
    stats = store.stats(tenant="default")
    assert stats.episodes == 6
    assert stats.reward_mean == pytest.approx(0.5)
    assert stats.reward_histogram == (2, 0, 0, 0, 0, 2, 0, 0, 0, 2)
    assert (stats.oldest, stats.newest) == (start, start + timedelta(hours=5))
    store.add([make(reward=1.0)])
    assert store.stats(tenant="default").episodes == 7
    assert store.stats(tenant="nobody").episodes == 0


def test_deleted_episodes_are_gone(store: EpisodeStore, make: Make) -> None:
    kept, gone = make(), make()
    store.add([kept, gone])
    assert store.delete([gone.id, gone.id, new_id(), "no-uuid"]) == 1
    assert store.get(gone.id) is None
    assert recall_from(store, gone.key, tenant="default", k=4, floor=0.9) == []
    assert store.delete([gone.id]) == 0
    assert store.delete([]) == 0
    assert store.stats().episodes == store.count() == 1


START = datetime(2026, 3, 1, tzinfo=UTC)


def asked_again(first: Episode, hours: int, **fields: Any) -> Episode:
    """Return a later episode of the prompt of `first`."""
    return replace(first, **({"created_at": START + timedelta(hours=hours)} | fields))


@pytest.mark.parametrize("at_once", [True, False])
def test_one_prompt_is_one_episode_with_the_better_answer_counted_and_dated(
    store: EpisodeStore, make: Make, at_once: bool
) -> None:
    first = make(reward=0.6, answer_token_ids=(1,), answer_text="one", created_at=START)
    episodes = [
        first,
        asked_again(first, 1, reward=0.9, answer_token_ids=(2,), answer_text="two", plain_reward=0.2),
        asked_again(first, 2, reward=0.7, answer_token_ids=(3,), answer_text="three"),
        asked_again(first, 3, reward=0.9, answer_token_ids=(4,), answer_text="four"),
        make(created_at=START),
    ]
    for batch in [episodes] if at_once else [[one] for one in episodes]:
        store.add(batch)
    kept = store.get(first.id)
    assert kept is not None
    assert (kept.answer_text, kept.answer_token_ids, kept.reward, kept.plain_reward) == (
        "two",
        (2,),
        0.9,
        0.2,
    )
    assert (kept.seen, kept.seen_at) == (4, START + timedelta(hours=3))
    assert store.count() == 2
    stats = store.stats()
    assert (stats.episodes, stats.seen) == (2, 5)
    assert ids(recall_from(store, first.key, tenant="default", k=9, floor=0.9)) == [first.id]


def test_a_repeated_prompt_is_new_again_only_when_a_better_answer_or_a_latent_was_found(
    store: EpisodeStore, make: Make
) -> None:
    first = make(reward=0.6, answer_token_ids=(1,), latent_earned=False, created_at=START)
    store.add([first])
    store.add([asked_again(first, 1), asked_again(first, 2, reward=0.8), asked_again(first, 3, reward=0.1)])
    assert store.count(since=START) == 0  # the same answer, and a worse one
    store.add([asked_again(first, 4, reward=0.9, answer_token_ids=(2,))])
    assert store.count(since=START + timedelta(hours=3)) == 1
    store.add([asked_again(first, 5, latent_earned=True)])
    assert store.count(since=START + timedelta(hours=4)) == 1
    store.add([asked_again(first, 6, latent_earned=True)])
    assert store.count(since=START + timedelta(hours=5)) == 0


def test_what_more_signals_judged_is_not_given_up_for_a_higher_reward(
    store: EpisodeStore, make: Make
) -> None:
    verified = make(reward=0.6, signals={"consistency": 0.6, "verifier": 0.6}, created_at=START)
    store.add([verified, asked_again(verified, 1, reward=1.0, signals={"consistency": 1.0})])
    kept = store.get(verified.id)
    assert kept is not None
    assert (kept.reward, kept.seen) == (0.6, 2)


def test_the_latent_of_the_prior_that_serves_is_kept_beside_the_better_answer(
    store: EpisodeStore, make: Make
) -> None:
    latents = [np.full((LENGTH, HIDDEN), value, np.float32) for value in (1, 2, 3, 4)]
    best = make(reward=0.9, latent=latents[0], prior_version="v1", start_lift=0.5, created_at=START)
    later = asked_again(best, 1, reward=0.7, latent=latents[1], prior_version="v2", start_lift=0.1)
    plain = asked_again(
        best, 2, reward=0.6, latent=latents[2], prior_version="v2", latent_earned=False, start_lift=None
    )
    store.add([best, later, plain])
    kept = store.get(best.id)
    assert kept is not None
    assert (kept.reward, kept.prior_version, kept.latent_earned, kept.start_lift) == (0.9, "v2", True, 0.1)
    assert kept.latent[0, 0] == 2
    store.add([asked_again(plain, 3, prior_version="v3", latent=latents[3])])
    kept = store.get(best.id)
    assert kept is not None
    assert (kept.prior_version, kept.latent_earned, kept.start_lift) == ("v3", False, None)


def test_a_write_that_is_repeated_counts_once(store: EpisodeStore, make: Make) -> None:
    first = make(created_at=START)
    again = asked_again(first, 1)
    for _ in range(3):
        store.add([first, again])
    kept = store.get(first.id)
    assert kept is not None
    assert (kept.seen, kept.seen_at) == (2, START + timedelta(hours=1))


def test_episodes_of_builds_with_an_id_for_each_answer_become_the_prompts_one(
    store: EpisodeStore, make: Make, space: str
) -> None:
    old = [make(prompt_token_ids=(7, 8), reward=0.6 + hour / 10, created_at=START) for hour in range(3)]
    old = [replace(one, key=old[0].key) for one in old]
    other = make(prompt_token_ids=(7, 9), key=old[0].key)
    store.add([*old, other])
    assert store.count() == 4
    name = prompt_id(space, "default", (7, 8))
    store.add([asked_again(old[0], 1, id=name, reward=0.7, latent_earned=False)])
    assert {episode.id for episode in store.scroll()} == {name, other.id}
    kept = store.get(name)
    assert kept is not None
    assert kept.reward == pytest.approx(0.8)
    assert kept.latent_earned
    assert kept.seen_at == START + timedelta(hours=1)


def test_old_prose_does_not_become_the_answer_of_a_prompt_held_to_a_grammar(
    store: EpisodeStore, make: Make, space: str
) -> None:
    prose = make(prompt_token_ids=(7, 8), reward=0.9, created_at=START)
    picked = asked_again(prose, 0, id=new_id(), choices=("yes", "no"))
    store.add([prose, picked])
    schema = prompt_id(space, "default", (7, 8), '{"json_object": true}')
    store.add([asked_again(prose, 1, id=schema, reward=0.5, answer_text="{}")])
    choice = prompt_id(space, "default", (7, 8), '{"choice": ["yes", "no"]}')
    store.add([asked_again(picked, 1, id=choice)])
    assert {episode.id for episode in store.scroll()} == {prose.id, schema, choice}
    kept = store.get(schema)
    assert kept is not None
    assert (kept.answer_text, kept.reward, kept.seen) == ("{}", 0.5, 1)


def test_what_an_add_that_ended_half_way_left_behind_goes_with_the_next_one(
    store: EpisodeStore, make: Make, space: str
) -> None:
    old = make(prompt_token_ids=(7, 8), reward=0.9, created_at=START)
    name = prompt_id(space, "default", (7, 8))
    store.add([old])
    store.add([asked_again(old, 1, id=name, reward=0.7)])
    store.add([old])  # as if it had never been deleted
    assert store.count() == 2
    store.add([asked_again(old, 2, id=name, reward=0.7)])
    [kept] = store.scroll()
    assert (kept.id, kept.seen, kept.reward) == (name, 3, pytest.approx(0.9))


def test_a_prompt_is_named_by_space_tenant_tokens_and_what_its_answer_is_held_to() -> None:
    named = {
        prompt_id(space, tenant, tokens, held_to)
        for space in ("s", "t")
        for tenant in ("a", "b")
        for tokens in ((1, 23), (12, 3))
        for held_to in (None, '{"choice": ["yes", "no"]}', '{"json_object": true}')
    }
    assert len(named) == 2 * 2 * 2 * 3
    assert prompt_id("s", "a", np.asarray([1, 2])) == prompt_id("s", "a", (1, 2))  # type: ignore[arg-type]


def test_unknown_ids_are_none(store: EpisodeStore) -> None:
    assert store.get(new_id()) is None
    assert store.get("no-uuid") is None
    assert store.get("") is None


BAD: list[tuple[str, dict[str, Any]]] = [
    ("key", {"key": np.zeros(HIDDEN - 1, np.float32)}),
    ("key", {"key": np.full(HIDDEN, np.nan, np.float32)}),
    ("key", {"key": np.zeros(HIDDEN, np.float32)}),
    ("key", {"key": [1.0] + [0.0] * (HIDDEN - 1)}),
    ("latent", {"latent": np.zeros((LENGTH + 1, HIDDEN), np.float32)}),
    ("latent", {"latent": np.full((LENGTH, HIDDEN), np.inf, np.float32)}),
    ("latent", {"latent": np.full((LENGTH, HIDDEN), 1e6, np.float32)}),
    ("reward", {"reward": 1.5}),
    ("reward", {"reward": float("nan")}),
    ("plain_reward", {"plain_reward": -0.1}),
    ("signals", {"signals": {"format": float("nan")}}),
    ("answer_token_ids", {"answer_token_ids": ()}),
    ("answer_token_ids", {"answer_token_ids": (1, -2)}),
    ("prompt_token_ids", {"prompt_token_ids": (1, 2.5)}),
    ("answer_text", {"answer_text": "lone surrogate \ud800"}),
    ("prompt_text", {"prompt_text": None}),
    ("tenant", {"tenant": ""}),
    ("id", {"id": "../../etc"}),
    ("created_at", {"created_at": datetime(2026, 1, 1)}),
    ("created_at", {"created_at": datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=1)))}),
    ("seen_at", {"seen_at": datetime(2026, 1, 1)}),
    ("seen", {"seen": 0}),
    ("space", {"space": "elsewhere"}),
]


@pytest.mark.parametrize(("field", "fields"), BAD)
def test_a_bad_episode_is_refused_by_name_and_its_batch_with_it(
    store: EpisodeStore, make: Make, field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(EpisodeRejectedError, match=rf"^{field} "):
        store.add([make(), make(**fields)])
    assert store.count() == 0


def test_a_closed_store_says_so(opener: Opener, make: Make, space: str) -> None:
    store = opener(space)
    store.add([make()])
    store.close()
    with pytest.raises(StoreUnavailableError):
        store.count()
    with pytest.raises(StoreUnavailableError):
        store.add([make()])


def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(StoreUnavailableError, match="latentevolve-space-a"):
        QdrantStore(connect("http://127.0.0.1:1"), space="space-a", length=LENGTH, hidden_size=HIDDEN)


@pytest.mark.parametrize(
    ("status", "error"),
    [(413, EpisodeRejectedError), (400, EpisodeRejectedError), (503, StoreUnavailableError)],
)
def test_a_batch_that_the_server_refuses_is_told_from_a_server_that_is_away(
    make: Make, monkeypatch: pytest.MonkeyPatch, space: str, status: int, error: type[Exception]
) -> None:
    client = QdrantClient(":memory:")
    store = QdrantStore(client, space=space, length=LENGTH, hidden_size=HIDDEN)

    def answer(*_: Any, **__: Any) -> None:
        raise UnexpectedResponse(status, "said so", b"too large", Headers())

    monkeypatch.setattr(client, "upsert", answer)
    with pytest.raises(error, match="too large") as caught:
        store.add([make()])
    assert type(caught.value) is error
    client.close()


def test_no_request_to_a_server_is_larger_than_one_takes(
    make: Make, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    client = QdrantClient(":memory:")
    store = QdrantStore(client, space=space, length=LENGTH, hidden_size=HIDDEN)
    upsert, sizes = client.upsert, []

    def measured(name: str, points: list[PointStruct], **options: Any) -> Any:
        sizes.append((len(points), sum(len(point.model_dump_json()) for point in points)))
        return upsert(name, points, **options)

    monkeypatch.setattr(client, "upsert", measured)
    monkeypatch.setattr(qdrant_store, "REQUEST_BYTES", 20_000)
    long = make(prompt_text="x" * 30_000)
    store.add([long, *(make() for _ in range(20))])
    assert sum(count for count, _ in sizes) == store.count() == 21
    assert 3 < len(sizes) < 15
    assert all(size <= 20_000 or count == 1 for count, size in sizes)
    client.close()


def test_a_collection_of_another_size_is_refused() -> None:
    client = QdrantClient(":memory:")
    QdrantStore(client, space="space-a", length=LENGTH, hidden_size=HIDDEN)
    with pytest.raises(StoreUnavailableError, match="expected two of 8"):
        QdrantStore(client, space="space-a", length=LENGTH, hidden_size=8)
    client.close()
