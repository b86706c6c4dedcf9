"""The language model of a night.

Owns which engine a worker trains with: transformers, which gives gradients and needs no vLLM.
"""

import logging
from collections.abc import Callable

from config.settings import Settings
from model.engine import Engine
from model.pull import resolve_model

logger = logging.getLogger(__name__)

EngineFactory = Callable[[Settings], Engine]
"""Builds an engine; blocks while the model loads."""


def open_engine(settings: Settings) -> Engine:
    """Load the settings' model.

    Raises:
        ModelUnavailableError: there is no such model.
    """
    from model.transformers_engine import TransformersEngine

    path = resolve_model(settings.model, settings.cache_dir, logger.info)
    return TransformersEngine(
        path,
        length=settings.latent_length,
        placement=settings.placement,
        max_model_len=settings.max_model_len,
    )
