"""Draws a map of keys and finds which belong together, in a process of its own.

Run by path as `projection.py COSINE`: keys and earlier places come as NumPy's archive on the standard input,
places and clusters go to the standard output as another. A map of 1,500 keys takes ten seconds and more of a
processor, for which it is last in line. Imports nothing of the project.
"""

import ctypes
import io
import os
import signal
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

PR_SET_PDEATHSIG = 1

ITERATIONS = 500
DIMENSIONS = 50
"""Of keys that t-SNE is given; the rest is hardly more than noise to a map."""
FEWEST = 5
"""Keys from which on t-SNE draws better than the two main directions."""


def project(keys: Array, before: Array) -> Array:
    """Return places on a map, (n, 2) within [-1, 1], at which like keys are near each other.

    The same keys have the same places, and keys of an earlier map about those that they had.

    Args:
        keys: (n, d) of norm 1.
        before: (n, 2) where each was on the earlier map; NaN: it was not.
    """
    from scipy.linalg import orthogonal_procrustes
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n = len(keys)
    main = _main_directions(keys)
    if n < FEWEST:
        return _scaled(main)
    start = main
    known = ~np.isnan(before[:, 0])
    if known.sum() >= FEWEST:
        nearest = np.flatnonzero(known)[(keys @ keys[known].T).argmax(axis=1)]
        start = np.where(known[:, None], before, before[nearest])
    spread = start[:, 0].std()
    start = (start / spread * 1e-4 if spread > 0 else start).astype(np.float32)
    pca = PCA(min(DIMENSIONS, n - 1, keys.shape[1]), random_state=0)
    tsne = TSNE(2, perplexity=min(30, (n - 1) / 3), init=start, random_state=0, max_iter=ITERATIONS)
    with threadpool_limits(1):  # threads that wait for one another would keep more than one processor busy
        places = tsne.fit_transform(pca.fit_transform(keys))
    if known.sum() >= FEWEST:  # turned and mirrored as the earlier one was
        centre = places[known].mean(axis=0)
        turn, _ = orthogonal_procrustes(places[known] - centre, before[known])
        places = (places - centre) @ turn
    return _scaled(places)


def clusters(keys: Array, cosine: float) -> NDArray[np.int64]:
    """Return to which cluster each of the keys, (n, d), belongs: chains of keys above a cosine are one."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    _, numbers = connected_components(csr_array(keys @ keys.T >= cosine), directed=False)
    return np.asarray(numbers, np.int64)


def _main_directions(keys: Array) -> Array:
    centred = keys - keys.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(keys), 2), np.float32)
    found = (left * sizes)[:, :2]
    places[:, : found.shape[1]] = found
    return places


def _scaled(places: Array) -> Array:
    centred = places - (places.max(axis=0) + places.min(axis=0)) / 2
    farthest = np.abs(centred).max()
    return np.asarray(centred / farthest if farthest > 0 else centred, np.float32)


def main() -> None:
    """Read keys, write places and clusters."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(19)
    given: Any = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    keys = given["keys"]
    places, numbers = project(keys, given["before"]), clusters(keys, float(sys.argv[1]))
    np.savez(sys.stdout.buffer, places=places, clusters=numbers)


if __name__ == "__main__":
    main()
