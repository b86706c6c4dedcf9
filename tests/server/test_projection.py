"""Maps of keys: like ones are near each other, and stay about where they were."""

import numpy as np
import pytest

from server.landscape import ProjectionError, in_a_process
from server.projection import Array, clusters, project


def topics(count: int, each: int, seed: int = 0) -> Array:
    """Return unit keys, (count * each, 64), topic after topic."""
    random = np.random.default_rng(seed)
    middles = np.repeat(np.random.default_rng(9).normal(size=(count, 64)), each, axis=0)
    keys = middles + 0.3 * random.normal(size=middles.shape)
    return np.asarray(keys / np.linalg.norm(keys, axis=1, keepdims=True), np.float32)


def unknown(keys: Array) -> Array:
    return np.full((len(keys), 2), np.nan, np.float32)


@pytest.fixture(scope="module")
def drawn() -> tuple[Array, Array]:
    """Keys of three topics, twenty each, and their places."""
    keys = topics(3, 20)
    return keys, project(keys, unknown(keys))


def test_topics_lie_apart_on_the_map(drawn: tuple[Array, Array]) -> None:
    _, places = drawn
    assert places.shape == (60, 2)
    assert np.abs(places).max() == pytest.approx(1)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 20 == np.arange(60) // 20).all(), (
        "each has one of its topic beside it"
    )


def test_the_same_memory_has_the_same_map(drawn: tuple[Array, Array]) -> None:
    keys, places = drawn
    assert np.allclose(project(keys, unknown(keys)), places, atol=1e-3)


def test_what_was_there_stays_about_where_it_was_when_more_comes(drawn: tuple[Array, Array]) -> None:
    few, first = drawn
    more = np.concatenate([few, topics(3, 2, seed=1)])
    later = project(more, np.concatenate([first, unknown(more[60:])]))
    for topic in range(3):
        mine = slice(20 * topic, 20 * topic + 20)
        moved = np.linalg.norm(later[mine].mean(axis=0) - first[mine].mean(axis=0))
        assert moved < 0.5, "the map is 2 wide"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_keys_have_a_map_too(count: int) -> None:
    keys = topics(count, 1)
    for rows in (keys, np.repeat(keys[:1], count, axis=0)):
        places = project(rows, unknown(rows))
        assert np.isfinite(places).all()
        assert np.abs(places).max() <= 1


def test_chains_of_like_keys_are_clusters() -> None:
    keys = topics(3, 5)
    assert clusters(keys, 0.5).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(clusters(keys, 1.1).tolist())) == 15


async def test_a_process_draws_the_same_map() -> None:
    keys = topics(3, 4)
    places, numbers = await in_a_process(keys, unknown(keys))
    assert np.allclose(places, project(keys, unknown(keys)), atol=1e-3)
    assert numbers.tolist() == [0] * 4 + [1] * 4 + [2] * 4


async def test_what_the_process_complains_of_is_told() -> None:
    with pytest.raises(ProjectionError, match="exit code 1: "):
        await in_a_process(np.zeros(3, np.float32), np.zeros((3, 2), np.float32))
