"""Two versions side by side: which clusters they share, and how far they agree there."""

import numpy as np
import pytest

from memory.compare import compare
from memory.prior import Prior, Row
from tests.tables import row

AXES = np.eye(8, dtype=np.float32)
LATENT = np.ones((2, 8), np.float32)


def made(name: str, *axes: int, latent: np.ndarray = LATENT, threshold: float = 0.6) -> Row:
    return row(latent, AXES[list(axes)], threshold, id=name)


def prior(version: str, *rows: Row) -> Prior:
    return Prior(version, "space", rows, {})


def test_a_row_that_was_carried_on_is_its_own_match() -> None:
    kept = made("v1/0", 0, 1)
    [match] = compare(prior("v1", kept), prior("v2", kept))
    assert match.same
    assert (match.a_covered, match.b_covered) == (1.0, 1.0)
    assert match.key_cosine == pytest.approx(1.0)
    assert match.latent_cosine == pytest.approx(1.0)
    assert match.latent_distance == pytest.approx(0.0)


def test_clusters_match_by_their_keys_and_each_row_once() -> None:
    # Both of b's rows are near v1/0; the nearer one gets it.
    near, off = AXES[[0]], np.asarray([[0.8, 0.6, 0, 0, 0, 0, 0, 0]], np.float32)
    a = prior("v1", made("v1/0", 0), made("v1/1", 5))
    b = prior("v2", row(LATENT, off, id="v2/0"), row(-LATENT, near, id="v2/1"), made("v2/2", 7))
    found = [(one.a.id if one.a else None, one.b.id if one.b else None) for one in compare(a, b)]
    assert found == [("v1/0", "v2/1"), ("v1/1", None), (None, "v2/0"), (None, "v2/2")]
    match = compare(a, b)[0]
    assert not match.same
    assert match.latent_cosine == pytest.approx(-1.0)
    assert match.latent_distance == pytest.approx(2.0)
    assert compare(a, b)[1].latent_cosine is None


def test_coverage_is_the_share_of_centroids_that_the_other_row_covers() -> None:
    [match] = compare(prior("v1", made("v1/0", 0, 1, 2, 3)), prior("v2", made("v2/0", 3)))
    assert (match.a_covered, match.b_covered) == (0.25, 1.0)


def test_a_latent_without_direction_has_no_cosine() -> None:
    [match] = compare(prior("v1", made("v1/0", 0)), prior("v2", made("v2/0", 0, latent=0 * LATENT)))
    assert (match.latent_cosine, match.latent_distance) == (None, None)
