"""The demo's own `latentevolve serve`.

Owns starting it on a free port, waiting until it is ready and ending it, also when the demo is
killed.
"""

import json
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.failure import CommandError
from cli.options import environment
from cli.screen import Screen
from cli.serving.child import Child, ChildSpec, Ended, LineWritten
from cli.serving.claim import free_port
from cli.serving.lifeline import lifeline
from cli.serving.supervisor import STOP_S

ISOLATED = {
    "host": "127.0.0.1",
    "memory_url": "none",  # services that are used otherwise must not see the demo
    "state_url": "none",
    "broker_url": "none",
    "night_cron": "never",
    "night_episodes": 0,
    "explore_share": 0.0,
}
"""Settings that keep a demo to itself, and its nights to when they are asked for."""


@contextmanager
def own_tree(screen: Screen, data_dir: Path, **overrides: Any) -> Iterator[tuple[str, int]]:
    """Run a whole tree on `data_dir` and yield its URL and its first process once it is ready.

    Raises:
        CommandError: it ended before it was ready.
    """
    port = free_port()
    settings = {**overrides, **ISOLATED, "port": port, "data_dir": data_dir}
    command = (sys.executable, "-m", "cli.main", "serve", "--json", "--stop-timeout", str(STOP_S))
    inherited = {key: value for key, value in os.environ.items() if key != "LATENTEVOLVE_GATEWAY_URL"}
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    # serve needs its own time to end its children before the guard may kill it
    with lifeline(STOP_S + 5.0) as guard_fd:
        child = Child(ChildSpec("serve", command, environment(settings)), events, guard_fd, inherited)
        try:
            with screen.busy("waiting for the server"):
                _wait_until_ready(screen, events, child, data_dir)
            yield f"http://127.0.0.1:{port}", child.pid
        finally:
            child.end(STOP_S + 5.0)
            os.write(guard_fd, b"-%d\n" % child.pid)


def _wait_until_ready(
    screen: Screen, events: "queue.SimpleQueue[object]", child: Child, data_dir: Path
) -> None:
    while True:
        match events.get():
            case Ended():
                # Celery's banner and the events say nothing of why, and would push out what does.
                said = [line for line in child.last_lines if not _event(line) and line[:6] != "worker"]
                for line in said[-20:]:
                    screen.note(f"  {line}")
                raise CommandError("the server ended before it was ready", f"its logs: {data_dir / 'logs'}")
            case LineWritten(_, text):
                event = _event(text)
                if event.get("event") == "check":
                    mark = "✓" if event["ok"] else "✗"
                    screen.line(f"{mark} {event['name']:<12} {event['detail']}  ({event['elapsed_s']:.1f} s)")
                elif event.get("event") == "ready":
                    return


def _event(text: str) -> dict[str, Any]:
    """Return a JSON line of serve; {} for a line of its log, which comes the same way."""
    if not text.startswith('{"event"'):
        return {}
    try:
        event = json.loads(text)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
