"""Rows of priors for tests."""

import numpy as np
import torch

from memory.episode import Array
from memory.prior import Coverage, Row


def row(
    latent: Array | torch.Tensor,
    keys: Array,
    threshold: float = 0.6,
    *,
    id: str = "",
    baseline: str | None = None,
) -> Row:
    """Return a row that speaks within `threshold` of the unit `keys`, (K, d)."""
    values = latent.detach().numpy() if isinstance(latent, torch.Tensor) else latent
    thresholds = np.full(len(keys), threshold, np.float32)
    return Row(
        id, np.asarray(values, np.float32), Coverage(np.asarray(keys, np.float32), thresholds), baseline
    )
