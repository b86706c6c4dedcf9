"""`latentevolve serve`: everything the loop needs, as one supervised tree.

Owns which processes make up the tree, their commands and their environment. How they are kept
alive and ended is in `cli/serving/`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import CacheDir, DataDir, Host, Json, Model, Port, environment, given, load_settings
from cli.screen import Screen
from cli.serving.board import Board
from cli.serving.child import ChildSpec, Limit
from cli.serving.claim import check_port, claim
from cli.serving.preload import preload
from cli.serving.readiness import Readiness
from cli.serving.supervisor import STOP_S, Supervisor
from config.loopback import connectable
from config.settings import Effort, Settings

GATEWAY_LIMIT = Limit(
    deaths=3,
    within_s=600.0,
    advice="What it remembered is kept. If the machine ran out of memory (`dmesg` tells), lower "
    "LATENTEVOLVE_KV_CACHE_GIB or LATENTEVOLVE_MAX_NUM_SEQS, or serve a smaller model; otherwise look for "
    "the first error in the log, and start again with LATENTEVOLVE_LOG_LEVEL=DEBUG if it does not tell.",
)


def serve(
    host: Host = None,
    port: Port = None,
    model: Model = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    effort: Annotated[
        Effort | None,
        typer.Option("--effort", help="Effort of requests that name none."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="DEBUG, INFO, WARNING or ERROR.")
    ] = None,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Run the night's worker too.")] = True,
    stop_timeout: Annotated[
        float, typer.Option("--stop-timeout", min=0, help="Seconds that children get to end by themselves.")
    ] = STOP_S,
    as_json: Json = False,
) -> None:
    """Run gateway and worker until Ctrl-C; starts again what dies."""
    overrides = given(
        host=host,
        port=port,
        model=model,
        data_dir=data_dir,
        cache_dir=cache_dir,
        default_effort=effort,
        log_level=log_level,
    )
    settings = load_settings(**overrides)
    listens = connectable(settings.host, settings.port)
    specs = tree(settings, worker=worker)
    check_port(settings.host, settings.port)
    with claim(settings.data_dir, listens) as lock:
        board = Board(Screen(as_json), [spec.name for spec in specs])
        readiness = Readiness(listens, board, worker=worker)
        watch = Watch(settings, listens, board, readiness)
        env = {
            **os.environ,
            **environment(overrides),
            "PYTHONUNBUFFERED": "1",
        }
        supervisor = Supervisor(
            specs,
            board,
            settings.data_dir / "logs",
            env,
            hold_fds=(lock,),
            stop_s=stop_timeout,
            on_line=watch.line,
            is_ready=watch.is_ready,
            on_restart=watch.restarts,
            on_passed=watch.passed,
            on_tick=watch.tick,
        )
        readiness.start()
        try:
            code = supervisor.run()
        finally:
            readiness.close()
            board.close()
        board.say("ended")
        board.event("stopped", code=code)
    raise typer.Exit(code)


def tree(settings: Settings, *, worker: bool) -> list[ChildSpec]:
    """Return the processes of the tree, in the order in which they start."""
    python = sys.executable
    fast = preload(os.environ)
    specs = [
        ChildSpec("model", (python, "-m", "cli.main", "pull"), passing=True),
        ChildSpec("gateway", (python, "-m", "server"), env=fast, restart=True, limit=GATEWAY_LIMIT),
    ]
    if worker:
        level = "DEBUG" if settings.log_level == "DEBUG" else "INFO"  # INFO tells when the worker is ready
        specs.append(
            ChildSpec(
                "worker",
                (
                    *(python, "-m", "celery", "-A", "worker.app", "worker"),
                    *("--without-gossip", "--without-mingle", "-l", level),
                ),
                env=fast,
                restart=True,
            )
        )
    return specs


class Watch:
    """Follows the start-up and shows the box once everything is ready."""

    def __init__(self, settings: Settings, url: str, board: Board, readiness: Readiness) -> None:
        self._settings = settings
        self._url = url
        self._board = board
        self._readiness = readiness
        self._model = settings.model
        self._shown = False

    def line(self, name: str, text: str) -> None:
        """Take notice of a line of a child's output."""
        if name == "model":
            self._model = text  # its last line is the folder
        self._readiness.line(name, text)

    def is_ready(self, name: str) -> bool:
        """Return whether a child does its work; only the gateway is looked at."""
        return name != "gateway" or self._readiness.gateway_ready

    def restarts(self, name: str) -> None:
        """Take notice that a child will be started again."""
        if name == "gateway":
            self._readiness.gateway_ended()
            self._shown = False

    def passed(self, _name: str) -> None:
        """Tick off the model."""
        self._readiness.model(self._model)

    def tick(self) -> None:
        """Look at what has changed; called a few times per second."""
        if not self._shown:
            self._readiness.look()
            self._shown = self._readiness.ready
            if self._shown:
                self._ready()

    def _ready(self) -> None:
        facts = ready_facts(self._settings, self._url, self._readiness.steering, self._readiness.keys)
        self._board.box("LatentEvolve is ready", list(facts.items()))
        self._board.event("ready", **facts)


def ready_facts(settings: Settings, url: str, steering: bool, keys: bool) -> dict[str, Any]:
    """Return what the box shows; `keys` says whether the gateway asks for an API key."""
    name = settings.served_model_name or settings.model
    key = " -H 'Authorization: Bearer '$LATENTEVOLVE_API_KEY" if keys else ""
    nobody = "whoever reaches it" if settings.open_without_key else "this machine only"
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return {
        "url": f"{url}/v1",
        "model": name,
        "effort": settings.default_effort if steering else "none (a self-check failed: see above)",
        "answers": "API keys" if keys else f"{nobody}: there is no API key (`latentevolve keys create`)",
        "data": str(Path(settings.data_dir).resolve()),
        "try": f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        "stop": "Ctrl-C",
    }
