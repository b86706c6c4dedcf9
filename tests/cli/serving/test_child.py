"""One supervised process."""

import os
import queue
import sys
import time
from typing import Any

import pytest

from cli.serving.child import Child, ChildSpec, Ended
from cli.serving.lifeline import lifeline


def test_whoever_ends_a_child_does_not_take_its_end_from_who_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waitid = os.waitid

    def late(*how: int) -> Any:
        time.sleep(0.2)
        return waitid(*how)

    monkeypatch.setattr(os, "waitid", late)
    asleep = ChildSpec("asleep", (sys.executable, "-S", "-c", "import time; time.sleep(60)"))
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    with lifeline(1.0) as guard_fd:
        child = Child(asleep, events, guard_fd, os.environ)
        assert child.end(5.0) < 0
        assert not child.alive
        assert isinstance(events.get(timeout=5.0), Ended)
        os.write(guard_fd, b"-%d\n" % child.pid)
