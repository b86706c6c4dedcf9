"""Run docker-compose.yml for real: build the image, start everything, ask, let a night pass, tear down.

    python3 scripts/containers.py

Owns one project of Compose with a name and volumes of its own, and a table of what was seen. Needs Docker,
Compose 2.24.4 or later and Python 3.11; what asks is the official openai client inside the image. Where the
image of the Qdrant server cannot be had, episodes are kept in the gateway's embedded store instead, and the
table says so. Ends with 1 when something failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1] if "__file__" in globals() else Path()  # read from stdin inside
OURS = ("gateway", "worker")
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc")
GATEWAY = "http://gateway:8000"
START_TIMEOUT_S = 900
NIGHT_TIMEOUT_S = 1200
DAY = 24
"""Questions of the day: enough for a night of the default model."""


class FailedError(Exception):
    """A check did not see what it should."""


class Table:
    """What was seen, a row at a time."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write
        self.failures = 0

    def row(self, name: str, seen: object, seconds: float | None = None, *, ok: bool = True) -> None:
        """Add a row."""
        self.failures += not ok
        self._write({"check": name, "ok": ok, "seen": str(seen), "seconds": seconds})

    @contextmanager
    def check(self, name: str) -> Iterator[list[object]]:
        """Time a check; what its list holds in the end is what was seen. An error becomes a failed row."""
        seen: list[object] = []
        begun = time.monotonic()
        try:
            yield seen
        except Exception as error:
            seen.append(f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}")
            self.row(name, ", ".join(map(str, seen)), time.monotonic() - begun, ok=False)
        else:
            self.row(name, ", ".join(map(str, seen)), time.monotonic() - begun)


def show(row: dict[str, Any]) -> None:
    """Print one row for a person."""
    took = "" if row["seconds"] is None else f"{row['seconds']:.1f} s"
    print(f"{'ok' if row['ok'] else 'FAILED':<7}{row['check']:<24}{took:>9}  {row['seen']}", flush=True)


# Outside: Docker


def override(*, qdrant: bool) -> str:
    """Return the compose file that lies over the project's own.

    It keeps out the operator's .env, publishes a free port, lets nights start only when asked, and, without
    `qdrant`, keeps episodes in the gateway.
    """
    settings = {
        "LATENTEVOLVE_NIGHT_CRON": "never",
        "LATENTEVOLVE_NIGHT_EPISODES": "0",
        "LATENTEVOLVE_NIGHT_MIN_EPISODES": "8",
        "LATENTEVOLVE_REMEMBER_THRESHOLD": "0",
        "LATENTEVOLVE_NIGHT_MIN_REWARD": "0",
    }
    if not qdrant:
        settings["LATENTEVOLVE_MEMORY_URL"] = "none"
    lines = ["services:"]
    for name in OURS:
        lines += [f"  {name}:", "    env_file: !override []", "    environment:"]
        lines += [f'      {key}: "{value}"' for key, value in settings.items()]
        if name == "gateway":
            lines += ["    ports: !override", '      - "127.0.0.1::8000"']
            if not qdrant:
                lines += ["    depends_on: !override", "      redis:", "        condition: service_healthy"]
    if not qdrant:
        lines += ["  qdrant:", "    profiles: [never]"]
    return "\n".join([*lines, ""])


class Compose:
    """Docker Compose on one project of this script's own."""

    def __init__(self, project: str, folder: Path, tag: str, further: Sequence[Path]) -> None:
        self.project = project
        nothing = folder / "empty.env"
        nothing.touch()
        self._override = folder / "override.yml"
        self._override.write_text(override(qdrant=True))
        files = [ROOT / "docker-compose.yml", self._override, *further]
        self._command = ["docker", "compose", "--project-name", project, "--env-file", str(nothing)]
        self._command += [part for file in files for part in ("--file", str(file))]
        self._environment = {**os.environ, "LATENTEVOLVE_TAG": tag}

    def embed(self) -> None:
        """Go on without a Qdrant server."""
        self._override.write_text(override(qdrant=False))

    def run(self, *arguments: str, timeout_s: float = 120, live: bool = False) -> str:
        """Return the output of `docker compose ...`; with `live`, show it on stderr instead."""
        return run([*self._command, *arguments], self._environment, timeout_s, live=live)

    def ask(self, table: Table, name: str) -> None:
        """Run this very file inside the worker's container and take over its rows."""
        command = [*self._command, "exec", "-T", "worker", "python", "-", "--inside", GATEWAY]
        with table.check(name) as seen:
            with subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as inside:
                assert inside.stdin is not None
                assert inside.stdout is not None
                inside.stdin.write(Path(__file__).read_text())
                inside.stdin.close()
                rows = 0
                for line in inside.stdout:
                    row = json.loads(line)
                    table.row(row["check"], row["seen"], row["seconds"], ok=row["ok"])
                    rows += 1
            if inside.returncode:
                raise FailedError(f"it ended with {inside.returncode}")
            seen.append(f"{rows} checks through the network of the containers")


def run(command: Sequence[str], env: dict[str, str], timeout_s: float, *, live: bool = False) -> str:
    """Return what a command writes.

    Raises:
        FailedError: it failed or took too long; the message ends with its last words.
    """
    try:
        done = subprocess.run(
            command,
            env=env,
            timeout=timeout_s,
            stdout=sys.stderr if live else subprocess.PIPE,
            stderr=None if live else subprocess.PIPE,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"`{' '.join(command)}` took longer than {timeout_s:.0f} s") from error
    except FileNotFoundError as error:
        raise FailedError(f"there is no {command[0]} on this machine") from error
    if done.returncode:
        raise FailedError(f"`{' '.join(command)}` ended with {done.returncode}: {(done.stderr or '')[-400:]}")
    return (done.stdout or "").strip()


def docker(*arguments: str, timeout_s: float = 120) -> str:
    """Return the output of `docker ...`."""
    return run(["docker", *arguments], dict(os.environ), timeout_s)


def outside(options: argparse.Namespace) -> int:
    """Build, start, look, ask, tear down; return how many checks failed."""
    table = Table(show)
    with tempfile.TemporaryDirectory(prefix="latentevolve-") as folder:
        project = f"latentevolve-try-{os.getpid()}"
        compose = Compose(project, Path(folder), options.tag, options.file)
        with table.check("docker") as seen:
            seen.append(f"engine {docker('version', '--format', '{{.Server.Version}}')}")
            seen.append(f"Compose {compose.run('version', '--short')}")
        if table.failures:
            return table.failures
        if not options.no_build:
            with table.check("build"):
                compose.run("build", "gateway", timeout_s=3600, live=True)
        if table.failures:
            return table.failures
        try:
            everything(table, compose, f"latentevolve:{options.tag}")
        finally:
            if options.keep:
                print(f"left running: docker compose --project-name {project} down --volumes ends it")
            else:
                _stop(table, compose)
                with table.check("tear down") as seen:
                    compose.run("down", "--volumes", "--remove-orphans", timeout_s=300)
                    seen.append(f"containers, network and volumes of {project} are gone; the image stays")
    return table.failures


def everything(table: Table, compose: Compose, image: str) -> None:
    """All that happens between build and tear-down."""
    with table.check("image") as seen:
        size = int(docker("image", "inspect", "--format", "{{.Size}}", image))
        seen.append(f"{image}, {size / 1e9:.2f} GB")
    with table.check("episode store") as seen:
        config = json.loads(compose.run("config", "--format", "json"))
        wanted = str(config["services"]["qdrant"]["image"])
        try:
            if not docker("image", "ls", "--quiet", wanted):
                docker("pull", "--quiet", wanted, timeout_s=900)
            seen.append(f"Qdrant server, {wanted}")
        except FailedError:
            compose.embed()
            seen.append(f"embedded in the gateway: {wanted} cannot be pulled here, so NO QDRANT SERVER RUNS")
    with table.check("until healthy") as seen:
        try:
            compose.run(
                "up", "--detach", "--no-build", "--wait", "--wait-timeout", str(START_TIMEOUT_S),
                timeout_s=START_TIMEOUT_S + 60,
            )  # fmt: skip
        except FailedError:
            print(compose.run("logs", "--no-color", "--tail", "40"), file=sys.stderr)
            raise
        lines = compose.run("ps", "--format", "{{.Service}} {{.Health}}").splitlines()
        seen += [" ".join(line.split()) for line in lines]
    if table.failures:
        return
    for name in OURS:
        with table.check(f"inside {name}") as seen:
            seen.append(_inside(compose, name))
    with table.check("published port") as seen:
        address = compose.run("port", "gateway", "8000")
        seen.append(_ready(f"http://{address}/readyz"))
    compose.ask(table, "the openai client")


def _stop(table: Table, compose: Compose) -> None:
    with table.check("stop") as seen:
        compose.run("stop", timeout_s=300)
        ended = json.loads("[" + ",".join(compose.run("ps", "--all", "--format", "json").splitlines()) + "]")
        codes = {entry["Service"]: entry["ExitCode"] for entry in ended}
        seen += [f"{name} ended with {code}" for name, code in sorted(codes.items())]
        if codes.get("gateway"):
            raise FailedError("the gateway did not end in order")


def _inside(compose: Compose, service: str) -> str:
    """Return who runs in a container and that nothing compiles there."""
    user = compose.run("exec", "-T", service, "id", "--user")
    if user == "0":
        raise FailedError("it runs as root")
    look = "; ".join(f"command -v {name}" for name in COMPILERS)
    if found := compose.run("exec", "-T", service, "sh", "-c", f"{look}; true").split():
        raise FailedError(f"there are compilers: {found}")
    return f"user {user}, no compiler"


def _ready(url: str) -> str:
    from urllib.request import urlopen

    with urlopen(url, timeout=30) as response:
        body = json.load(response)
    return f"{url} {response.status}, steering {'on' if body.get('steering', True) else 'off'}"


# Inside: the client


def inside(url: str) -> int:
    """Ask the gateway at `url` as clients do, and let a night pass; return how many checks failed."""
    import openai

    table = Table(lambda row: print(json.dumps(row), flush=True))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    model = client.models.list().data[0].id

    def chat(question: str, **options: Any) -> Any:
        options = {"max_tokens": 24, "temperature": 0, **options}
        return client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": question}], **options
        )

    for effort in ("none", "low", "medium", "high"):
        with table.check(f"effort {effort}") as seen:
            raw = chat("Name a colour.", logprobs=True, top_logprobs=3, extra_body=_effort(effort))
            answer = raw.parse()
            choice = answer.choices[0]
            tokens = len(choice.logprobs.content)
            if not choice.message.content or not tokens or raw.headers["x-latent-effort"] != effort:
                raise FailedError(f"{choice}, {dict(raw.headers)}")
            seen.append(f"{raw.headers['x-latent-mode']} ({raw.headers['x-latent-reason']})")
            seen.append(f"{answer.usage.completion_tokens} tokens, log-probabilities of {tokens}")
    with table.check("streaming") as seen:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(chat("Count to five.", **options, extra_body=_effort("medium")).parse())
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        pieces = [
            choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content
        ]
        if not pieces or not reasons[-1] or chunks[-1].usage is None:
            raise FailedError(f"{len(pieces)} pieces, ended by {reasons[-1:]}, usage {chunks[-1].usage}")
        seen.append(
            f"{len(pieces)} pieces, ended by {reasons[-1]}, {chunks[-1].usage.completion_tokens} tokens"
        )
    with table.check("tools") as seen:
        raw = chat("What is the weather in Oslo?", tools=[TOOL], tool_choice="required", max_tokens=64)
        (call,) = raw.parse().choices[0].message.tool_calls
        json.loads(call.function.arguments)
        seen.append(f"{call.function.name}({call.function.arguments})")
    for name, options, kind in (
        ("bad temperature", {"temperature": -1}, openai.BadRequestError),
        ("bad effort", {"extra_body": _effort("enormous")}, openai.BadRequestError),
        ("unknown model", {"extra_body": {"model": "nobody"}}, openai.NotFoundError),
    ):
        with table.check(name) as seen:
            try:
                chat("Name a colour.", **options)
            except kind as error:
                seen.append(f"{error.status_code}: {error.body['message'][:90]}")
            else:
                raise FailedError("it was answered")
    _night(table, client, chat)
    _operating(table, client, chat, url)
    return table.failures


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def _effort(name: str) -> dict[str, Any]:
    return {"latent": {"effort": name}}


def _night(table: Table, client: Any, chat: Callable[..., Any]) -> None:
    """A day of remembered answers, a night on them, and the next answer under its prior."""
    import examples

    def get(path: str) -> Any:
        return client.get(path, cast_to=object)

    lines = (Path(examples.__path__[0]) / "topics.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines[:DAY]]

    def ask(row: dict[str, Any], effort: str) -> Any:
        choice = {"structured_outputs": {"choice": row["choices"]}}
        return chat(row["question"], max_tokens=8, extra_body={**_effort(effort), **choice})

    with table.check("a day") as seen:
        modes = [ask(row, "medium").headers["x-latent-mode"] for row in questions]
        seen += [f"{modes.count(mode)} {mode}" for mode in sorted(set(modes))]
    with table.check("stats") as seen:
        stats = get("/memory/stats")
        while stats["pending_writes"]:
            time.sleep(0.2)
            stats = get("/memory/stats")
        kept = sum(space["episodes"] for space in stats["spaces"].values())
        seen.append(f"{stats['requests']['total']} requests, {kept} episodes")
        if kept < DAY // 2:
            raise FailedError("so few are remembered")
    with table.check("a night") as seen:
        done = subprocess.run(
            ["latentevolve", "night", "--json"], capture_output=True, text=True, timeout=NIGHT_TIMEOUT_S
        )
        if done.returncode not in (0, 3):  # 3: worse than what is served
            raise FailedError(f"`latentevolve night` ended with {done.returncode}: {done.stderr[-300:]}")
        record = json.loads(done.stdout)
        seen.append(f"{record['episodes']} episodes, {record['version']} {record['state']}")
    if table.failures:
        return
    with table.check("swap") as seen:
        version = record["version"]
        if record["state"] == "promoted":
            _until(lambda: get("/priors")["active"] == version, f"{version} is not active")
        else:  # an operator may take what is not proven yet
            client.post(f"/priors/{version}/activate", cast_to=object)
        if get("/priors")["active"] != version:
            raise FailedError(f"active is {get('/priors')['active']}, not {version}")
        seen.append(f"{version} is active")
        fronts = [ask(row, "low").headers["x-latent-prior"] for row in questions]
        seen.append(f"in front of {fronts.count(version)} of {DAY} answers")


def _operating(table: Table, client: Any, chat: Callable[..., Any], url: str) -> None:
    """What people and operators touch beside answers."""
    import io
    import tarfile
    from urllib.request import urlopen

    def read(path: str) -> bytes:
        with urlopen(f"{url}{path}", timeout=120) as response:
            body: bytes = response.read()
        return body

    with table.check("feedback") as seen:
        answer = chat("Name a river.").parse()
        said = {"inference_id": answer.id, "metric_name": "rating", "value": True}
        _until(lambda: _taken(client, said), "the answer cannot be rated")
        seen.append("an answer is rated by its id")
    with (
        table.check("export") as seen,
        tarfile.open(fileobj=io.BytesIO(read("/v1/memory/export"))) as archive,
    ):
        end = archive.extractfile("end.json")
        assert end is not None
        seen.append(f"{json.load(end)['episodes']} episodes")
    with table.check("dashboard") as seen:
        page = read("/dashboard/")
        if b"<html" not in page:
            raise FailedError(f"it begins with {page[:60]!r}")
        seen.append(f"a page of {len(page)} bytes")
    with table.check("metrics") as seen:
        lines = read("/metrics").decode().splitlines()
        for name in (
            "latentevolve_ready 1.0",
            "latentevolve_overhead_seconds_count",
            "vllm:time_to_first_token",
        ):
            if not any(line.startswith(name) for line in lines):
                raise FailedError(f"there is no {name}")
        seen.append(f"{sum(line.startswith('# TYPE') for line in lines)} of them")


def _taken(client: Any, said: dict[str, Any]) -> bool:
    import openai

    try:
        client.post("/feedback", body=said, cast_to=object)
    except openai.NotFoundError:  # its trace is still to be written
        return False
    return True


def _until(holds: Callable[[], bool], otherwise: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise FailedError(otherwise)
        time.sleep(0.2)


def main() -> int:
    """Run outside, or inside a container when told to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tag", default="try", help="of the image latentevolve:TAG (default: try)")
    parser.add_argument("--no-build", action="store_true", help="use the image as it is")
    parser.add_argument("--keep", action="store_true", help="do not tear down")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a further compose file")
    parser.add_argument("--inside", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not re.fullmatch(r"[\w][\w.-]{0,127}", options.tag):
        parser.error("--tag: letters, digits, dots, dashes and underscores")
    failures = inside(options.inside) if options.inside else outside(options)
    if failures and not options.inside:
        print(f"{failures} failed", file=sys.stderr)
    return 1 if failures and not options.inside else 0


if __name__ == "__main__":
    sys.exit(main())
