"""What a table of latents and its coverage promise."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from memory.episode import Array
from memory.prior import Coverage, Prior, Row, standings
from tests.tables import row

HIDDEN, LENGTH = 48, 4


def unit(rows: np.ndarray) -> Array:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def task_keys(rng: np.random.Generator, centre: Array, count: int, cosine: float) -> Array:
    """Keys whose cosine to `centre` is `cosine`, in random directions around it."""
    noise = rng.normal(size=(count, HIDDEN))
    noise -= (noise @ centre)[:, None] * centre
    return unit(cosine * centre + np.sqrt(1 - cosine**2) * unit(noise))


@pytest.fixture
def tasks(rng: np.random.Generator) -> Callable[[int], list[Array]]:
    def draw(count: int) -> list[Array]:
        basis = np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN)))[0][:count]
        return list(basis.astype(np.float32))

    return draw


def test_coverage_takes_in_its_tasks_and_no_others(
    rng: np.random.Generator, tasks: Callable[[int], list[Array]]
) -> None:
    first, second, foreign = tasks(3)
    train = np.concatenate([task_keys(rng, c, 60, 0.9) for c in (first, second)])
    coverage = Coverage.around(train, 0.7)
    covered = [coverage.covers(k) for c in (first, second) for k in task_keys(rng, c, 100, 0.9)]
    assert np.mean(covered) > 0.9
    assert not any(coverage.covers(k) for k in task_keys(rng, foreign, 100, 0.9))
    assert not any(coverage.covers(-k) for k in train)


def test_the_same_keys_give_the_same_coverage(rng: np.random.Generator) -> None:
    keys = unit(rng.normal(size=(40, HIDDEN)))
    one, same = (Coverage.around(keys, 0.5, seed=3) for _ in range(2))
    assert np.array_equal(one.centroids, same.centroids)
    assert len(one.centroids) <= 24


@pytest.mark.parametrize("count", [1, 30])
def test_copies_of_one_key_make_one_centroid(rng: np.random.Generator, count: int) -> None:
    keys = unit(rng.normal(size=(1, HIDDEN)))
    coverage = Coverage.around(np.repeat(keys, count, axis=0), 0.5)
    assert len(coverage.centroids) == 1
    assert coverage.covers(keys[0])
    assert coverage.score(keys[0]) == pytest.approx(1, abs=1e-5)


def test_keys_without_direction_are_never_covered(rng: np.random.Generator) -> None:
    coverage = Coverage.around(unit(rng.normal(size=(5, HIDDEN))), 0.5)
    for key in (np.zeros(HIDDEN, np.float32), np.full(HIDDEN, np.nan, np.float32)):
        assert coverage.score(key) == -1
        assert not coverage.covers(key)


def test_keys_that_are_none_are_refused() -> None:
    for keys in (np.zeros((0, HIDDEN), np.float32), np.full((1, HIDDEN), np.inf, np.float32)):
        with pytest.raises(ValueError, match="keys"):
            Coverage.around(keys, 0.5)


def latent(level: float) -> Array:
    return np.full((LENGTH, HIDDEN), level, np.float32)


def prior(*rows: Row) -> Prior:
    return Prior("v9", "space", rows, {})


def test_of_rows_that_cover_a_key_the_one_born_last_speaks_and_of_these_the_nearest(
    rng: np.random.Generator, tasks: Callable[[int], list[Array]]
) -> None:
    first, second = tasks(2)
    key = unit(0.8 * first + 0.6 * second)
    older, near, far = (
        row(latent(1), first[None], 0.5, id="v2/0"),
        row(latent(2), first[None], 0.5, id="v10/0"),
        row(latent(3), second[None], 0.5, id="v10/1"),
    )
    for order in ([older, near, far], [far, near, older]):
        assert prior(*order).row(key) is near
    assert prior(older, far).row(key) is far
    assert np.array_equal(prior(older).predict(key), older.latent)


def test_where_no_row_speaks_there_is_none(tasks: Callable[[int], list[Array]]) -> None:
    first, second = tasks(2)
    made = prior(row(latent(1), first[None], id="v1/0"))
    assert made.covers(first)
    assert not made.covers(second)
    with pytest.raises(LookupError, match="v9"):
        made.predict(second)
    assert not prior().covers(first)


def test_some_rows_of_a_version_can_be_left_out(tasks: Callable[[int], list[Array]]) -> None:
    first, second = tasks(2)
    whole = prior(row(latent(1), first[None], id="v1/0"), row(latent(2), second[None], id="v1/1"))
    part = whole.only({"v1/1"})
    assert part.version == whole.version
    assert not part.covers(first)
    assert part.covers(second)
    assert whole.covers(first)


def test_a_key_of_another_size_is_an_error(tasks: Callable[[int], list[Array]]) -> None:
    (first,) = tasks(1)
    with pytest.raises(ValueError, match="shape"):
        prior(row(latent(1), first[None], id="v1/0")).row(first[:-1])


def test_each_row_stands_where_its_own_outcomes_put_it(tasks: Callable[[int], list[Array]]) -> None:
    made = prior(*(row(latent(1), key[None], id=f"v1/{at}") for at, key in enumerate(tasks(3))))
    found = standings(made, {"v1/0": [1.0] * 20, "v1/1": [-1.0] * 20, "v7/0": [1.0] * 20})
    assert [evidence.standing for evidence in found.values()] == ["serves", "retired", "on trial"]
    assert list(found) == ["v1/0", "v1/1", "v1/2"]


def test_what_an_earlier_build_promoted_serves_until_it_harms(tasks: Callable[[int], list[Array]]) -> None:
    (key,) = tasks(1)
    old = row(latent(1), key[None], id="v1/0")
    made = prior(replace(old, promoted=True))
    assert standings(made, {})["v1/0"].standing == "serves"
    assert standings(made, {"v1/0": [-1.0] * 20})["v1/0"].standing == "retired"
    assert standings(prior(old), {})["v1/0"].standing == "on trial"
