"""What tests of several packages share."""

import os
from pathlib import Path

import pytest

from config.settings import DEFAULT_MODEL
from model.pull import resolve_model


@pytest.fixture(scope="session")
def small_model() -> str:
    """Folder of the small real model: `LATENTEVOLVE_TEST_MODEL`, or the default one, made once."""
    given = os.environ.get("LATENTEVOLVE_TEST_MODEL")
    return given or resolve_model(DEFAULT_MODEL, Path(".cache"), print)
