"""Where a request's latent starts, given what was recalled."""

import numpy as np
import torch

from memory.episode import Episode
from memory.prior import Prior
from memory.store import Recalled
from server.steering.start import base_of, transfer
from tests.tables import row

L, D = 3, 8
RNG = np.random.default_rng(0)
NEUTRAL = torch.ones(L, D)


def unit() -> np.ndarray:
    key = RNG.standard_normal(D).astype(np.float32)
    return key / np.linalg.norm(key)


def neighbour(latent: torch.Tensor, similarity: float = 0.9, key: np.ndarray | None = None) -> Recalled:
    episode = Episode(
        space="s",
        key=unit() if key is None else key,
        latent=latent.numpy(),
        reward=1.0,
        signals={},
        prompt_token_ids=(1,),
        answer_token_ids=(2,),
        prompt_text="",
        answer_text="",
    )
    return Recalled(episode, similarity)


def moved(
    key: np.ndarray, recalled: list[Recalled], prior: Prior | None = None, **changes: float
) -> torch.Tensor:
    options = {"temperature": 0.1, "clamp": 10.0} | changes
    return transfer(key, recalled, base_of(prior, NEUTRAL), **options)


def prior(level: float, key: np.ndarray, threshold: float = 0.9) -> Prior:
    latent = torch.normal(level, 0.1, (L, D), generator=torch.Generator().manual_seed(0))
    return Prior("v1", "s", (row(latent, key[None], threshold, id="v1/0"),), {})


def test_nothing_recalled_starts_at_the_base() -> None:
    key = unit()
    assert torch.equal(moved(key, []), NEUTRAL)
    known = prior(2.0, key)
    assert torch.equal(moved(key, [], known), torch.from_numpy(known.predict(key)))


def test_identical_neighbour_gives_its_latent_whatever_the_prior() -> None:
    key, latent = unit(), torch.randn(L, D, generator=torch.Generator().manual_seed(1))
    for known in (None, prior(2.0, key), prior(-1.0, key)):
        assert torch.allclose(moved(key, [neighbour(latent, 1.0, key)], known), latent, atol=1e-5)


def test_order_of_neighbours_does_not_matter() -> None:
    key = unit()
    near = [neighbour(NEUTRAL + torch.randn(L, D), similarity) for similarity in (0.9, 0.7, 0.8, 0.95)]
    assert torch.allclose(moved(key, near), moved(key, near[::-1]), atol=1e-6)


def test_delta_is_clamped_relative_to_the_base() -> None:
    key, far = unit(), NEUTRAL * 100
    start = moved(key, [neighbour(far)], clamp=0.5)
    assert torch.isclose((start - NEUTRAL).norm(), 0.5 * NEUTRAL.norm())


def test_low_temperature_follows_the_nearest() -> None:
    key = unit()
    near = [neighbour(NEUTRAL * 2, 0.95), neighbour(NEUTRAL * 3, 0.6)]
    assert torch.allclose(moved(key, near, temperature=0.01), NEUTRAL * 2, atol=1e-4)
    assert torch.allclose(moved(key, near, temperature=1e6), NEUTRAL * 2.5, atol=1e-4)


def test_deltas_are_taken_from_the_prior_of_now() -> None:
    """A swap that shifts every base shifts the start no further than the base itself."""
    key, other = unit(), unit()
    latent = NEUTRAL * 3
    everywhere = prior(2.0, key, threshold=-1.0)
    start = moved(key, [neighbour(latent, 0.9, other)], everywhere)
    expected = torch.from_numpy(everywhere.predict(key) + latent.numpy() - everywhere.predict(other))
    assert torch.allclose(start, expected, atol=1e-5)


def test_prior_is_silent_outside_its_region() -> None:
    key, elsewhere = np.eye(D, dtype=np.float32)[:2]
    base = base_of(prior(2.0, key), NEUTRAL)
    assert torch.equal(base(elsewhere), NEUTRAL)
    assert not torch.equal(base(key), NEUTRAL)
