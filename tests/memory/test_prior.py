"""What the prior network and its region of competence promise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from memory.episode import Array
from memory.prior import Competence, Prior, PriorNetwork, kind_means

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


def test_an_untrained_network_gives_the_base_for_every_key() -> None:
    base = torch.randn(LENGTH, HIDDEN)
    network = PriorNetwork(HIDDEN, LENGTH, base=base)
    latents = network(torch.randn(3, HIDDEN))
    assert latents.shape == (3, LENGTH, HIDDEN)
    assert torch.equal(latents, base.expand(3, -1, -1))


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    network = PriorNetwork(HIDDEN, LENGTH, rank=4)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    keys, targets = torch.randn(2, HIDDEN), torch.randn(2, LENGTH, HIDDEN)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = []
    for _ in range(60):
        loss = (network(keys) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, value in network.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert not torch.allclose(network(keys)[0], network(keys)[1])


def test_a_base_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="base has shape"):
        PriorNetwork(HIDDEN, LENGTH, base=torch.zeros(LENGTH, HIDDEN + 1))


def test_competence_covers_its_tasks_and_not_others(
    rng: np.random.Generator, tasks: Callable[[int], list[Array]]
) -> None:
    first, second, foreign = tasks(3)
    train = np.concatenate([task_keys(rng, c, 40, 0.9) for c in (first, second)])
    holdout = np.concatenate([task_keys(rng, c, 20, 0.9) for c in (first, second)])
    competence = Competence.fit(train, holdout)
    covered = [competence.covers(k) for c in (first, second) for k in task_keys(rng, c, 100, 0.9)]
    assert np.mean(covered) > 0.85
    assert not any(competence.covers(k) for k in task_keys(rng, foreign, 100, 0.9))
    assert not any(competence.covers(-k) for k in train)


def test_the_threshold_never_falls_under_the_floor(rng: np.random.Generator) -> None:
    train, scattered = unit(rng.normal(size=(30, HIDDEN))), unit(rng.normal(size=(30, HIDDEN)))
    assert Competence.fit(train, scattered).threshold == 0.5
    assert Competence.fit(train, scattered, floor=0.7).threshold == 0.7
    tight = task_keys(rng, train[0], 30, 0.99)
    assert Competence.fit(tight, tight).threshold > 0.9


def test_a_lower_quantile_covers_more(rng: np.random.Generator, tasks: Callable[[int], list[Array]]) -> None:
    (centre,) = tasks(1)
    train = task_keys(rng, centre, 60, 0.9)
    holdout = np.concatenate([task_keys(rng, centre, 20, c) for c in (0.7, 0.8, 0.9)])
    thresholds = [Competence.fit(train, holdout, quantile=q).threshold for q in (0.0, 0.2, 0.5)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_the_fit_is_the_same_for_the_same_seed(rng: np.random.Generator) -> None:
    train, holdout = unit(rng.normal(size=(200, HIDDEN))), unit(rng.normal(size=(50, HIDDEN)))
    one, same = (Competence.fit(train, holdout, seed=3) for _ in range(2))
    assert np.array_equal(one.centroids, same.centroids)
    assert one.threshold == same.threshold
    assert len(one.centroids) == 24
    assert np.linalg.norm(one.centroids, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_keys_are_enough(rng: np.random.Generator, count: int) -> None:
    keys = unit(rng.normal(size=(1, HIDDEN)))
    competence = Competence.fit(np.repeat(keys, count, axis=0), np.zeros((0, HIDDEN), np.float32))
    assert len(competence.centroids) == 1
    assert competence.covers(keys[0])
    assert competence.score(keys[0]) == pytest.approx(1, abs=1e-5)


def test_keys_without_direction_are_not_covered(rng: np.random.Generator) -> None:
    competence = Competence.fit(unit(rng.normal(size=(5, HIDDEN))), np.zeros((0, HIDDEN), np.float32))
    for key in (np.zeros(HIDDEN, np.float32), np.full(HIDDEN, np.nan, np.float32)):
        assert competence.score(key) == -1
        assert not competence.covers(key)


def test_unusable_training_keys_are_refused() -> None:
    empty = np.zeros((0, HIDDEN), np.float32)
    with pytest.raises(ValueError, match="train_keys is empty"):
        Competence.fit(empty, empty)
    with pytest.raises(ValueError, match="holdout_keys"):
        Competence.fit(np.ones((2, HIDDEN), np.float32), np.full((1, HIDDEN), np.inf, np.float32))


def test_a_prior_predicts_what_its_network_does_for_kinds_of_one_key(rng: np.random.Generator) -> None:
    network = PriorNetwork(HIDDEN, LENGTH, rank=4)
    torch.nn.init.normal_(network.up.weight)
    keys = unit(rng.normal(size=(3, HIDDEN)))
    competence = Competence(keys, 0.9)
    prior = Prior("v1", "space-a", network, competence, {})
    for key in keys:
        latent = prior.predict(key)
        assert latent.shape == (LENGTH, HIDDEN)
        assert latent.dtype == np.float32
        expected = network(torch.from_numpy(key)[None])[0].detach().numpy()
        assert latent == pytest.approx(expected, abs=1e-6)
        assert prior.covers(key)
        assert not prior.covers(-key)
    with pytest.raises(ValueError, match="key has shape"):
        prior.predict(keys)


def test_a_prior_gives_every_request_of_a_kind_the_latent_of_the_kind(rng: np.random.Generator) -> None:
    first, second = np.eye(HIDDEN, dtype=np.float32)[:2]
    keys = np.concatenate([task_keys(rng, centre, 20, 0.8) for centre in (first, second)])
    network = PriorNetwork(HIDDEN, LENGTH, rank=4)
    torch.nn.init.normal_(network.up.weight)
    prior = Prior("v1", "space-a", network, Competence(keys, 0.5), {})
    means = [keys[:20].mean(axis=0), keys[20:].mean(axis=0)]
    expected = [network(torch.from_numpy(mean)[None])[0].detach().numpy() for mean in means]
    assert not np.allclose(*expected, atol=0.1)
    for centre, latent in zip((first, second), expected, strict=True):
        for key in task_keys(rng, centre, 5, 0.8):
            assert prior.predict(key) == pytest.approx(latent, abs=1e-5)


def test_kinds_are_chains_of_keys() -> None:
    angles = np.deg2rad([0, 50, 100, 200])
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    means = kind_means(keys, keys[[0, 2, 3]])
    assert means[0] == pytest.approx(keys[:3].mean(axis=0))
    assert np.array_equal(means[0], means[1])
    assert means[2] == pytest.approx(keys[3])


def test_the_mean_of_a_kind_is_that_of_its_training_keys_however_many_centroids(
    rng: np.random.Generator,
) -> None:
    centres = np.eye(HIDDEN, dtype=np.float32)[:2]
    train = np.concatenate([task_keys(rng, centre, 60, 0.8) for centre in centres])
    competence = Competence.fit(train, train, clusters=5)
    for kind in (train[:60], train[60:]):
        assert competence.mean(kind[7]) == pytest.approx(kind.mean(axis=0), abs=1e-5)


def test_joined_kinds_keep_their_means_though_their_centroids_are_near() -> None:
    """Centroids average noise away: those of two kinds can be nearer to each other than any two keys."""
    first, second, third = np.eye(HIDDEN, dtype=np.float32)[:3]
    near = unit(first + second)
    parts = [Competence(first[None], 0.5, third[None]), Competence(near[None], 0.5, second[None])]
    joined = Competence.joined(parts)
    assert np.array_equal(joined.mean(first), third)
    assert np.array_equal(joined.mean(near), second)


def test_a_request_is_asked_about_as_the_kind_that_covers_it() -> None:
    """It may be nearer to a kind whose narrow region leaves it out, where nobody judged its latent."""
    first, second, third = np.eye(HIDDEN, dtype=np.float32)[:3]
    competence = Competence(np.stack([first, second]), np.array([0.5, 0.9], np.float32))
    key = unit(0.60 * first + 0.71 * second + 0.36 * third)
    assert competence.covers(key)
    assert np.array_equal(competence.mean(key), first)
    assert np.array_equal(competence.mean(unit(0.4 * first + 0.8 * second + 0.4 * third)), second)


def test_regions_that_are_joined_keep_their_thresholds() -> None:
    first, second = np.eye(HIDDEN, dtype=np.float32)[:2]
    one, other = Competence(first[None], 0.9), Competence(second[None], 0.6)
    joined = Competence.joined([one, other])

    def at(centre: Array, cosine: float) -> Array:
        away = np.eye(HIDDEN, dtype=np.float32)[2]
        return (cosine * centre + np.sqrt(1 - cosine**2) * away).astype(np.float32)

    for cosine in (0.55, 0.65, 0.85, 0.95):
        assert joined.covers(at(first, cosine)) == one.covers(at(first, cosine)) == (cosine > 0.9)
        assert joined.covers(at(second, cosine)) == other.covers(at(second, cosine)) == (cosine > 0.6)
    assert not joined.covers(np.zeros(HIDDEN, np.float32))
    assert not joined.covers(np.full(HIDDEN, np.nan, np.float32))
    assert Competence.joined([one]) is one
