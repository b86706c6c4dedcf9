"""The trust region of a search: a ball around the latent it started from.

Owns the projection. A latent far from any embedding the model has seen earns rewards by breaking it.
"""

import torch

RADIUS = 1.0
"""Longest way from the start, relative to its norm. No longer than the default `delta_norm_clamp`, or
transfer would not bring back what a search found."""


def project(latent: torch.Tensor, start: torch.Tensor, radius: float) -> torch.Tensor:
    """Return the nearest latent to `latent` within `radius · ‖start‖` of `start`, all (L, d)."""
    way = latent - start
    longest = radius * float(start.norm())
    length = float(way.norm())
    return latent if length <= longest else start + way * (longest / length)
