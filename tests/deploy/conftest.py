"""Tests of what is deployed ask a running gateway."""

from tests.server.api.conftest import serve, served

__all__ = ["serve", "served"]
