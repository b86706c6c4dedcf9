"""Fixtures of the command line that benchmarks need too."""

from tests.cli.conftest import _own_settings, gateway

__all__ = ["_own_settings", "gateway"]
