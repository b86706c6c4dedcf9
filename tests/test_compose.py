"""The compose files are wired by settings that exist, and start commands that exist."""

from pathlib import Path

import pytest
import yaml

from config.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_sets_only_settings_that_exist() -> None:
    known = {f"LATENTEVOLVE_{name.upper()}" for name in Settings.model_fields}
    for name, service in COMPOSE["services"].items():
        assert set(service.get("environment", {})) <= known, name


def test_compose_environment_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in COMPOSE["services"]["gateway"]["environment"].items():
        monkeypatch.setenv(key, str(value))
    settings = Settings(_env_file=None)
    assert settings.url == "http://gateway:8000"
    assert settings.broker_url == "redis://redis:6379/0"
    assert settings.memory_url == "http://qdrant:6333"


def test_every_service_that_is_waited_for_has_a_health_check() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for dependency in service.get("depends_on", {}):
            assert "healthcheck" in services[dependency], dependency


def test_image_copies_every_package() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in ("bench", "cli", "config", "examples", "memory", "model", "server", "worker"):
        assert f"COPY {package} {package}" in dockerfile


def test_gpu_file_only_names_services_of_the_first() -> None:
    gpu = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
    assert set(gpu["services"]) <= set(COMPOSE["services"])
