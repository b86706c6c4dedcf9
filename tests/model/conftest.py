"""Engines on models that are loaded once for all tests of this package."""

import pytest

from model.frozen_model import FrozenModel
from model.transformers_engine import TransformersEngine

LENGTH = 4
"""L in these tests: short, so that finite differences and ascents are cheap."""


def _engine(folder: str) -> TransformersEngine:
    return TransformersEngine(folder, length=LENGTH, placement="user_turn_end", max_model_len=1024)


@pytest.fixture(scope="session")
def engine(tiny_model: str) -> TransformersEngine:
    """On random weights: what is computed has to equal its reference on any."""
    return _engine(tiny_model)


@pytest.fixture(scope="session")
def real_engine(small_model: str) -> TransformersEngine:
    """On the real small model, where it matters that answers and keys mean something."""
    return _engine(small_model)


@pytest.fixture
def model(engine: TransformersEngine) -> FrozenModel:
    return engine.model
