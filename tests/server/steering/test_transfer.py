"""Momentum transfer: the formula that gateway and night share."""

import numpy as np
import pytest

from server.steering.transfer import momentum_transfer, transfer_weights

rng = np.random.default_rng(0)
BASE = rng.normal(size=(3, 4)).astype(np.float32)
LATENTS = rng.normal(size=(2, 3, 4)).astype(np.float32)
NO_CLAMP = 1e6


def test_weights_sum_to_one_and_follow_similarity() -> None:
    weights = transfer_weights(np.array([0.9, 0.7, 0.8]), temperature=0.1)
    assert weights.sum() == pytest.approx(1.0)
    assert list(np.argsort(-weights)) == [0, 2, 1]


def test_weights_survive_a_tiny_temperature() -> None:
    assert transfer_weights(np.array([0.9, 0.7]), temperature=1e-6) == pytest.approx([1.0, 0.0])


def test_one_neighbour_with_the_same_base_hands_over_its_latent() -> None:
    moved = momentum_transfer(BASE, LATENTS[:1], BASE, np.array([0.8]), temperature=0.1, clamp=NO_CLAMP)
    np.testing.assert_allclose(moved, LATENTS[0], atol=1e-6)


def test_deltas_are_moved_not_states() -> None:
    """A neighbour that did not leave its own base moves nobody."""
    moved = momentum_transfer(BASE, LATENTS, LATENTS, np.array([0.8, 0.7]), temperature=0.1, clamp=NO_CLAMP)
    np.testing.assert_allclose(moved, BASE, atol=1e-6)


def test_delta_is_clamped_relative_to_the_base() -> None:
    far = LATENTS * 1000
    moved = momentum_transfer(BASE, far, BASE, np.array([0.8, 0.7]), temperature=0.1, clamp=0.5)
    assert np.linalg.norm(moved - BASE) == pytest.approx(0.5 * np.linalg.norm(BASE), rel=1e-4)


@pytest.mark.parametrize(
    ("latents", "bases", "similarities"),
    [
        (LATENTS[:0], BASE, np.array([])),
        (LATENTS, BASE, np.array([0.8])),
        (LATENTS, LATENTS[:1], np.array([0.8, 0.7])),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    latents: np.ndarray, bases: np.ndarray, similarities: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"neighbours|bases"):
        momentum_transfer(BASE, latents, bases, similarities, temperature=0.1, clamp=1.0)
