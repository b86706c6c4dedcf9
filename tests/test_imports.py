"""The import arrows: who may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"bench", "cli", "config", "memory", "model", "server", "worker"}

MAY_IMPORT = {
    "config": set(),
    "memory": {"config"},
    "model": {"config"},
    "server": {"config", "memory", "model"},
    "worker": {"config", "memory", "model"},
    "cli": {"config", "memory", "model", "server", "worker"},
    "bench": {"cli", "config", "memory", "model", "server", "worker"},
}


def imports_of(path: Path) -> set[str]:
    """Return dotted names of every module that a file imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_imports_only_along_the_arrows(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for path in modules(package):
        used = {name.split(".")[0] for name in imports_of(path)} & OURS
        assert used <= allowed, f"{path.relative_to(ROOT)} imports {sorted(used - allowed)}"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("server/api", {"torch", "qdrant_client", "qdrant_edge", "vllm"}),
        ("server/steering", {"vllm", "qdrant_client", "qdrant_edge", "fastapi", "starlette"}),
        ("server/steering", {"server.engine", "server.api", "server.app"}),
        ("server/engine", {"server.api", "server.app", "fastapi.testclient"}),
        ("memory", {"vllm", "transformers", "fastapi", "celery"}),
        ("model", {"vllm", "fastapi", "celery", "qdrant_client"}),
        ("worker", {"vllm", "fastapi", "qdrant_client", "qdrant_edge"}),
        ("config", {"torch", "vllm", "fastapi"}),
    ],
)
def test_layer_does_not_know(folder: str, forbidden: set[str]) -> None:
    for path in modules(folder):
        for name in imports_of(path):
            prefixes = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)}
            assert not prefixes & forbidden, f"{path.relative_to(ROOT)} imports {name}"


def test_only_settings_read_the_environment() -> None:
    # Who starts processes hands them an environment; nothing else looks at it.
    allowed = {
        "bench/serve/servers.py",
        "cli/demonstration/tree.py",
        "cli/serve.py",
        "server/engine/launch.py",
    }
    for package in sorted(OURS):
        for path in modules(package):
            name = str(path.relative_to(ROOT))
            if name not in allowed:
                assert "os.environ" not in path.read_text(), name
                assert "os.getenv" not in path.read_text(), name


@pytest.mark.parametrize("module", ["worker.app", "cli.main"])
def test_importing_worker_or_command_line_loads_no_model_library(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
