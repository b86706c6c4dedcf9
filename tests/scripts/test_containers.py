"""The command that runs the containers for real, beside a Docker that only says what it is asked."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import Settings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "containers.py"

FAKE = """#!{python} -SE
import json, pathlib, sys
here = pathlib.Path(sys.argv[0]).parent
arguments = sys.argv[1:]
files = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--file"]
over = [pathlib.Path(file).read_text() for file in files[1:]]
with (here / "asked").open("a") as log:
    log.write(json.dumps({{"arguments": arguments, "over": over}}) + "\\n")
known = json.loads((here / "known").read_text())
for part, answer in known.items():
    if part in " ".join(arguments):
        if answer is None:
            sys.exit("it cannot be had")
        print(answer)
        break
"""

HEALTHY = {
    "version --format": "28.0",
    "version --short": "2.26.1",
    "--format {{.Size}}": "1990000000",
    "config --format json": json.dumps({"services": {"qdrant": {"image": "qdrant/qdrant:v1"}}}),
    "image ls": "abc",
    "{{.Service}}": "gateway healthy",
    "ps --all": json.dumps({"Service": "gateway", "ExitCode": 0}),
    "id --user": "1000",
    "--inside": json.dumps({"check": "effort low", "ok": True, "seen": "plain", "seconds": 1.0}),
}


class Machine:
    """A folder in front of PATH with a `docker` that answers from a table and notes what it was asked."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        docker = folder / "docker"
        docker.write_text(FAKE.format(python=sys.executable))
        docker.chmod(0o755)

    def run(self, changed: dict[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the script; `changed` takes the place of answers, None: the command fails."""
        known = {**HEALTHY, "port gateway": f"127.0.0.1:{self._port}"}
        (self._folder / "known").write_text(json.dumps(known | (changed or {})))
        (self._folder / "asked").unlink(missing_ok=True)
        return subprocess.run(
            [sys.executable, str(SCRIPT)],
            env={**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Each call: its arguments, and the files that lay over the project's own."""
        return [json.loads(line) for line in (self._folder / "asked").read_text().splitlines()]

    def calls(self, *words: str) -> list[list[str]]:
        """Return the arguments of the calls that have all these words."""
        return [call["arguments"] for call in self.asked if set(words) <= set(call["arguments"])]


class Ready(BaseHTTPRequestHandler):
    """A gateway that is ready."""

    def do_GET(self) -> None:
        body = b'{"ready": true, "steering": true}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    server = HTTPServer(("127.0.0.1", 0), Ready)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Machine(tmp_path, server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


def laid_over(text: str) -> dict[str, Any]:
    """Return a compose file's services, without what Compose's own tags mean."""
    services: dict[str, Any] = yaml.safe_load(text.replace("!override", ""))["services"]
    return services


def test_everything_that_holds_ends_with_zero_and_a_row_each(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    for seen in (
        "1.99 GB",
        "qdrant/qdrant:v1",
        "user 1000, no compiler",
        "effort low",
        "gateway ended with 0",
    ):
        assert seen in done.stdout


@pytest.mark.parametrize(
    "broken",
    [
        {"id --user": "0"},
        {"command -v": "/usr/bin/gcc"},
        {"up --detach": None},
        {"--inside": json.dumps({"check": "tools", "ok": False, "seen": "no call", "seconds": 1.0})},
        {"--inside": None},
        {"ps --all": json.dumps({"Service": "gateway", "ExitCode": 137})},
        {"down": None},
    ],
    ids=[
        "root",
        "compiler",
        "never healthy",
        "a failed check inside",
        "nobody inside",
        "killed",
        "left behind",
    ],
)
def test_whatever_does_not_hold_ends_with_one(machine: Machine, broken: dict[str, str | None]) -> None:
    done = machine.run(broken)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert machine.calls("down", "--volumes")


def test_nothing_is_started_where_there_is_no_docker(machine: Machine) -> None:
    done = machine.run({"version --format": None})
    assert done.returncode == 1
    assert not machine.calls("up")


def test_only_a_project_of_its_own_is_torn_down(machine: Machine) -> None:
    machine.run()
    for call in machine.calls("compose"):
        name = call[call.index("--project-name") + 1]
        assert name.startswith("latentevolve-try-")
    assert len({call[call.index("--project-name") + 1] for call in machine.calls("compose")}) == 1
    assert not machine.calls("rm")
    assert not machine.calls("prune")


def test_without_the_qdrant_image_episodes_are_kept_in_the_gateway_and_the_table_says_so(
    machine: Machine,
) -> None:
    done = machine.run({"image ls": "", "pull": None})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO QDRANT SERVER RUNS" in done.stdout
    over = next(call["over"][0] for call in machine.asked if "up" in call["arguments"])
    services = laid_over(over)
    assert services["qdrant"]["profiles"] == ["never"]
    assert list(services["gateway"]["depends_on"]) == ["redis"]
    assert services["gateway"]["environment"]["LATENTEVOLVE_MEMORY_URL"] == "none"


def test_the_operators_settings_stay_outside(machine: Machine) -> None:
    machine.run()
    up = next(call for call in machine.asked if "up" in call["arguments"])
    services = laid_over(up["over"][0])
    known = {f"LATENTEVOLVE_{name.upper()}" for name in Settings.model_fields}
    for name in ("gateway", "worker"):
        assert services[name]["env_file"] == []
        assert set(services[name]["environment"]) <= known
    assert Path(up["arguments"][up["arguments"].index("--env-file") + 1]).name == "empty.env"
