"""Momentum transfer: what recalled latents say about a new prompt (arXiv 2509.24771).

Owns the formula. Knows nothing of stores, priors or where a base comes from.
"""

import numpy as np
from numpy.typing import NDArray

from memory.episode import Array


def transfer_weights(similarities: NDArray[np.floating], temperature: float) -> Array:
    """Return α = softmax(similarity / T), (k,). `temperature` is T > 0."""
    scores = np.asarray(similarities, dtype=np.float64) / temperature
    weights = np.exp(scores - scores.max())
    alpha: Array = (weights / weights.sum()).astype(np.float32)
    return alpha


def momentum_transfer(
    base: Array,
    latents: Array,
    bases: Array,
    similarities: NDArray[np.floating],
    *,
    temperature: float,
    clamp: float,
) -> Array:
    """Return z_0 = z_base + Σ_j α_j (z*_j − z_base,j), (L, d) float32.

    Args:
        base: (L, d) where the new prompt's latent starts.
        latents: (k, L, d) refined latents of the neighbours, k ≥ 1.
        bases: (k, L, d) where those start under the same prior, or (L, d) when they share one.
        similarities: (k,) cosine of each neighbour's key with the prompt's.
        temperature: T of the softmax.
        clamp: longest summed delta (Frobenius norm), relative to the norm of `base`.

    Raises:
        ValueError: the shapes do not fit together, or there is no neighbour.
    """
    neighbours = len(similarities)
    if not neighbours or latents.shape != (neighbours, *base.shape):
        raise ValueError(f"latents {latents.shape} do not fit {neighbours} neighbours of base {base.shape}")
    if bases.shape not in (base.shape, latents.shape):
        raise ValueError(f"bases of shape {bases.shape}, expected {base.shape} or {latents.shape}")
    deltas = latents.astype(np.float32) - bases.astype(np.float32)  # (k, L, d)
    delta = np.tensordot(transfer_weights(similarities, temperature), deltas, axes=1)  # (L, d)
    longest = clamp * float(np.linalg.norm(base))
    norm = float(np.linalg.norm(delta))
    if norm > longest:
        delta = delta * (longest / norm)
    moved: Array = (base + delta).astype(np.float32)
    return moved
