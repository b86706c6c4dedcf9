"""Kubernetes: what the overlays make is valid, wired by settings that exist, and runs as the image does."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.serve import tree
from config.settings import Settings
from tests.test_compose import COMPOSE, image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
OURS = ("gateway", "worker")
Objects = dict[tuple[str, str], dict[str, Any]]


@cache
def rendered(overlay: str) -> str:
    """Return what an overlay makes, as text; skip without a kustomize."""
    folder = FOLDER / "overlays" / overlay
    if program := shutil.which("kustomize"):
        command = [program, "build", str(folder)]
    elif program := shutil.which("kubectl"):
        command = [program, "kustomize", str(folder)]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def objects(overlay: str) -> Objects:
    """Return objects by kind and name, those of the template of secrets among them."""
    documents = [
        *yaml.safe_load_all(rendered(overlay)),
        *yaml.safe_load_all((FOLDER / "secret.example.yaml").read_text()),
    ]
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def pods(found: Objects) -> dict[str, dict[str, Any]]:
    """Return the templates of pods by the names of what makes them."""
    return {
        name: one["spec"]["template"]
        for (kind, name), one in found.items()
        if kind in ("Deployment", "StatefulSet")
    }


def container(template: dict[str, Any]) -> dict[str, Any]:
    (one,) = template["spec"]["containers"]
    return dict(one)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_valid_by_kubernetes_schemas(overlay: str, tmp_path: Path) -> None:
    written = tmp_path / "all.yaml"
    written.write_text(rendered(overlay))
    if program := shutil.which("kubeconform"):
        command = [program, "-strict", str(written)]
    elif program := shutil.which("kubernetes-validate"):
        command = [program, "--strict", str(written)]
    else:
        pytest.skip("no kubeconform, and no kubernetes-validate (pip install kubernetes-validate)")
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_told_settings_that_exist_and_are_valid(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = objects(overlay)
    known = {f"LATENTEVOLVE_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        told: dict[str, str] = {}
        for source in container(pods(found)[name])["envFrom"]:
            ((kind, reference),) = source.items()
            held = found[{"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"]]
            told |= held.get("data") or held["stringData"]
        assert set(told) <= known
        for key, value in told.items():
            monkeypatch.setenv(key, value)
        settings = Settings(_env_file=None)
        assert settings.state_url is not None
        assert settings.state_url.startswith("postgresql")
        services = {settings.broker_url, settings.memory_url, settings.gateway_url}
        for url in services:
            assert url is not None
            host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
            assert found["Service", host]["spec"]["ports"][0]["port"] == int(port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_named_is_there(overlay: str) -> None:
    found = objects(overlay)
    labels = [template["metadata"]["labels"] for template in pods(found).values()]
    selectors = [
        one["spec"]["selector"].get("matchLabels", one["spec"]["selector"])
        for (kind, _), one in found.items()
        if kind in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet")
    ]
    for selector in selectors:
        assert sum(selector.items() <= one.items() for one in labels) == 1, selector
    for template in pods(found).values():
        for volume in template["spec"].get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in found
        for variable in container(template).get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert reference["key"] in found["Secret", reference["name"]]["stringData"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_is_root_or_may_become_it(overlay: str) -> None:
    for name, template in pods(objects(overlay)).items():
        of_pod = template["spec"]["securityContext"]
        assert of_pod["runAsNonRoot"], name
        assert of_pod["fsGroup"] == of_pod["runAsUser"], name
        context = container(template)["securityContext"]
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        assert template["spec"]["enableServiceLinks"] is False, name
        if name in OURS:
            assert f"--uid {of_pod['runAsUser']} latentevolve" in image(overlay)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_what_serve_does(overlay: str) -> None:
    found = pods(objects(overlay))
    for child in tree(Settings(_env_file=None), worker=True):
        if child.name != "model":
            assert container(found[child.name])["command"] == ["python", *child.command[1:]]
            assert container(found[child.name])["image"] == f"latentevolve:{overlay}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_gateway_has_the_time_to_load_a_model_and_keeps_serving_without_a_store(overlay: str) -> None:
    gateway = container(pods(objects(overlay))["gateway"])
    start = gateway["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 1800
    assert start["httpGet"]["path"] == "/readyz"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/health", "/readyz asks the store too"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_a_gpu_is_asked_for_and_never_one_more_than_there_are() -> None:
    found = objects("gpu")
    for name in OURS:
        assert container(pods(found)[name])["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for overlay in OVERLAYS:  # nor of half a node
        found = objects(overlay)
        assert found["Deployment", "gateway"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
        assert found["Deployment", "worker"]["spec"]["strategy"]["type"] == "Recreate"
    assert not any("nvidia.com/gpu" in str(template) for template in pods(objects("cpu")).values())


def test_stores_are_those_of_the_compose_file() -> None:
    found = pods(objects("cpu"))
    for name in ("redis", "qdrant"):
        version = COMPOSE["services"][name]["image"]
        assert container(found[name])["image"].removesuffix("-unprivileged") == version


def test_template_of_secrets_holds_none() -> None:
    for document in yaml.safe_load_all((FOLDER / "secret.example.yaml").read_text()):
        for name, value in document["stringData"].items():
            assert "CHANGE-ME" in value, name
