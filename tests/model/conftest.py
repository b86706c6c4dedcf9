"""The real small model, loaded once for all tests of this package."""

import pytest

from model.frozen_model import FrozenModel
from model.transformers_engine import TransformersEngine

LENGTH = 4
"""L in these tests: short, so that finite differences and ascents are cheap."""


@pytest.fixture(scope="session")
def engine(small_model: str) -> TransformersEngine:
    return TransformersEngine(small_model, length=LENGTH, placement="user_turn_end", max_model_len=1024)


@pytest.fixture
def model(engine: TransformersEngine) -> FrozenModel:
    return engine.model
