"""When the tree is ready, seen from outside.

Owns the poll of `/readyz` and the checklist that follows from it and from the worker's output.
Knows nothing of processes.
"""

import threading
from typing import Any

import httpx

from cli.serving.board import Board

GATEWAY_ITEMS = ("gateway", "engine", "self-checks", "memory")
"""What the gateway's answers tell of."""
WORKER_READY = "ready."
"""How Celery's last start-up line ends: `celery@host ready.`"""


class Readiness:
    """Ticks off gateway, engine, self-checks, memory and worker as they come up."""

    def __init__(self, url: str, board: Board, *, worker: bool, every_s: float = 0.5) -> None:
        self._url = url
        self._board = board
        self._missing = ["model", *GATEWAY_ITEMS, *(["worker"] if worker else [])]
        self._every_s = every_s
        self._latest: tuple[int, dict[str, Any]] | None = None
        self._lives = 0
        """How many gateways have ended: an answer is of the one that it was asked of."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.steering = True
        """Whether steered answers are served; False when a self-check has failed."""
        self.keys = True
        """Whether the gateway asks for an API key; so it is taken to where it does not know."""

    @property
    def ready(self) -> bool:
        """Whether everything is up."""
        return not self._missing

    @property
    def gateway_ready(self) -> bool:
        """Whether the gateway that runs now can serve."""
        return not set(GATEWAY_ITEMS) & set(self._missing)

    def gateway_ended(self) -> None:
        """Wait for the gateway anew: it has ended and will be started again."""
        with self._lock:
            self._lives += 1
            self._latest = None
        self._missing = [*GATEWAY_ITEMS, *(item for item in self._missing if item not in GATEWAY_ITEMS)]
        self._board.begin()

    def start(self) -> None:
        """Poll in the background until closed, but not while the gateway is known to be ready."""
        threading.Thread(target=self._poll, name="readiness", daemon=True).start()

    def close(self) -> None:
        """Stop polling."""
        self._ended.set()

    def line(self, name: str, text: str) -> None:
        """Take notice of a line of a child's output."""
        if name == "worker" and text.rstrip().endswith(WORKER_READY):
            self._tick_off("worker", True, "takes nights")

    def model(self, detail: str) -> None:
        """Note that the model is there."""
        self._tick_off("model", True, detail)

    def look(self) -> None:
        """Tick off what the latest answer of the gateway says, and show what is missing."""
        latest = self._latest
        if latest is not None:
            status, body = latest
            self._tick_off("gateway", True, self._url)
            if body.get("engine"):
                self._tick_off("engine", True, "answered a token")
            if body.get("memory"):
                self._tick_off("memory", True, "open")
            if checks := body.get("checks"):
                self._checks(checks)
            if status == 200:
                self.steering = bool(body.get("steering", True))
                self.keys = body.get("keys") is not False
                for item in ("engine", "self-checks", "memory"):
                    self._tick_off(item, True)
        self._board.waiting(self._missing)

    def _checks(self, checks: list[dict[str, Any]]) -> None:
        if "self-checks" not in self._missing:
            return
        failed = [check for check in checks if not check.get("ok")]
        names = ", ".join(str(check.get("name")) for check in checks if check.get("ok"))
        self._tick_off("self-checks", not failed, names)
        for check in failed:
            self._board.say(f"  {check.get('name')}: {check.get('detail')}", "bold red")

    def _tick_off(self, item: str, ok: bool, detail: str = "") -> None:
        if item in self._missing:
            self._missing.remove(item)
            self._board.check(item, ok, detail)

    def _poll(self) -> None:
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while not self._ended.wait(self._every_s):
                lives = self._lives
                latest = self._latest  # read once: `gateway_ended` may take it away at any moment
                if latest is not None and latest[0] == 200:
                    continue
                try:
                    response = client.get(f"{self._url}/readyz")
                    body = response.json()
                except (httpx.HTTPError, ValueError):
                    continue  # not listening yet
                with self._lock:
                    if isinstance(body, dict) and lives == self._lives:
                        self._latest = response.status_code, body
