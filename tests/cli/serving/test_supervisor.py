"""What holds for a supervised tree, with children that misbehave."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.cli.serving.conftest import Tree, alive, eventually

Grow = Callable[..., Tree]

NOTE = (
    "import os, signal, sys, time\n"
    "def note(pid):\n"
    "    with open(os.environ['FOLDER'] + '/pids', 'a') as f: f.write(f'{pid}\\n')\n"
)
SLEEP = "time.sleep(600)\n"
SLEEPER = NOTE + "note(os.getpid())\n" + SLEEP
STUBBORN = (
    NOTE + "for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
    "note(os.getpid())\n" + SLEEP
)
PARENT = (
    NOTE + "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    "if not os.fork():\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    os.setpgid(0, 0)\n"  # a grandchild in a group of its own is still of the session
    "    note(os.getpid())\n"
    "    time.sleep(600)\n"
    "note(os.getpid())\n" + SLEEP
)


def test_one_signal_ends_every_child(grow: Grow) -> None:
    tree = grow({"gateway": {"code": SLEEPER}, "worker": {"code": SLEEPER, "restart": True}})
    pids = tree.wait_for_pids(2)
    code, events, _ = tree.end(signal.SIGINT)
    assert code == 0
    assert not any(alive(pid) for pid in pids)
    assert {event["name"] for event in events if event["event"] == "ended"} == {"gateway", "worker"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_and_hangup_end_the_tree_too(grow: Grow, number: int) -> None:
    tree = grow({"gateway": {"code": SLEEPER}})
    pids = tree.wait_for_pids(1)
    assert tree.end(number)[0] == 0
    assert not alive(pids[0])


def test_a_signal_that_was_ignored_before_stays_so(grow: Grow) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        tree = grow({"gateway": {"code": SLEEPER}})
        pids = tree.wait_for_pids(1)
        tree.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert alive(pids[0])
        assert tree.end(signal.SIGTERM)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_child_that_ignores_the_signal_is_killed_after_the_bound(grow: Grow) -> None:
    tree = grow({"gateway": {"code": STUBBORN}}, stop_s=0.5)
    pids = tree.wait_for_pids(1)
    code, _, said = tree.end()
    assert code == 0
    assert "gateway did not end within 0.5 s: killed" in said
    assert not alive(pids[0])


def test_second_signal_forces_the_end(grow: Grow) -> None:
    tree = grow({"gateway": {"code": STUBBORN}}, stop_s=600)
    pids = tree.wait_for_pids(1)
    tree.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert alive(pids[0])
    code, _, said = tree.end(signal.SIGINT)
    assert code == 0
    assert "forced" in said
    assert not alive(pids[0])


def test_grandchildren_end_with_their_parent(grow: Grow) -> None:
    tree = grow({"gateway": {"code": PARENT}})
    pids = tree.wait_for_pids(2)
    assert tree.end()[0] == 0
    assert not any(alive(pid) for pid in pids)


def test_killed_supervisor_leaves_nothing_behind(grow: Grow) -> None:
    tree = grow(
        {"gateway": {"code": PARENT}, "worker": {"code": STUBBORN, "restart": True}},
        stop_s=0.5,
    )
    pids = tree.wait_for_pids(3)
    tree.process.kill()
    eventually(lambda: not any(alive(pid) for pid in pids), "the guard ends all children")


def test_supervisor_killed_while_starting_leaves_nothing_behind(grow: Grow) -> None:
    tree = grow({str(n): {"code": SLEEPER} for n in range(8)}, stop_s=0.5)
    tree.wait_for_pids(1)
    tree.process.kill()
    time.sleep(1.0)  # what was about to start has started, and has been ended
    eventually(lambda: not any(alive(pid) for pid in tree.pids()), "the guard ends all children")


def test_data_directory_is_held_until_the_last_child_has_gone(grow: Grow) -> None:
    tree = grow({"gateway": {"code": STUBBORN}}, stop_s=2.0)
    pids = tree.wait_for_pids(1)
    tree.process.kill()
    tree.process.wait()
    second = grow({"gateway": {"code": SLEEPER}})
    code, _, said = second.outcome()
    assert code == 1
    assert "is already being served by process" in said
    eventually(lambda: not alive(pids[0]), "the guard ends the child")
    eventually(lambda: not _held(tree), "the guard lets go of the data directory")


def _held(tree: Tree) -> bool:
    import fcntl

    with (tree.folder / "serve.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_dead_worker_is_started_again_and_said_so(grow: Grow) -> None:
    tree = grow({"gateway": {"code": SLEEPER}, "worker": {"code": SLEEPER, "restart": True}})
    tree.wait_for_pids(2)
    for generation in range(2):
        eventually(lambda: _running(tree, "worker"), "the worker runs and has said so")
        os.kill(_running(tree, "worker")[-1], signal.SIGKILL)
        tree.wait_for_pids(3 + generation)
    code, events, said = tree.end()
    assert code == 0
    waits = [event["wait_s"] for event in events if event["event"] == "restart"]
    assert waits == [0.05, 0.1], "each failure in a row waits longer"
    assert "worker ended (killed by SIGKILL); starting it again in 0.05 s" in said


def _running(tree: Tree, name: str) -> list[int]:
    return [pid for pid in tree.pids() if alive(pid) and _name(tree, pid) == name]


def _name(tree: Tree, pid: int) -> str:
    for log in (tree.folder / "logs").glob("*.log"):
        if f"process {pid}\n" in log.read_text():
            return log.stem
    return ""


def test_worker_waiting_for_its_restart_does_not_outlive_the_stop(grow: Grow) -> None:
    tree = grow(
        {"gateway": {"code": SLEEPER}, "worker": {"code": NOTE + "note(os.getpid())", "restart": True}},
        first_s=600,
    )
    tree.wait_for_pids(2)
    assert tree.end()[0] == 0


LIMIT = {"deaths": 3, "within_s": 600.0}
READY = SLEEPER.replace("time.sleep", "print('ready')\ntime.sleep")


def test_gateway_that_never_was_ready_ends_everything_with_its_code_and_last_lines(grow: Grow) -> None:
    dying = NOTE + "note(os.getpid())\nprint('the weights are missing')\ntime.sleep(0.5)\nsys.exit(7)\n"
    tree = grow(
        {
            "gateway": {"code": dying, "restart": True, "limit": LIMIT},
            "worker": {"code": SLEEPER, "restart": True},
        }
    )
    code, events, said = tree.outcome()
    assert code == 7
    assert "gateway ended (exit code 7)" in said
    assert "  the weights are missing" in said
    assert "restart" not in {event["event"] for event in events}
    assert not any(alive(pid) for pid in tree.pids())


def test_gateway_killed_before_it_is_ready_ends_everything_with_a_shell_code(grow: Grow) -> None:
    tree = grow(
        {
            "gateway": {"code": PARENT, "restart": True, "limit": LIMIT},
            "worker": {"code": SLEEPER, "restart": True},
        }
    )
    pids = tree.wait_for_pids(3)
    leader = next(pid for pid in pids if _name(tree, pid) == "gateway")
    os.kill(leader, signal.SIGKILL)
    code, _, said = tree.outcome()
    assert code == 128 + signal.SIGKILL
    assert "left 1 process(es) behind: killed" in said
    assert not any(alive(pid) for pid in pids)


def test_gateway_that_was_ready_comes_back_until_it_has_died_too_often(grow: Grow) -> None:
    tree = grow(
        {
            "gateway": {"code": READY, "restart": True, "limit": LIMIT},
            "worker": {"code": SLEEPER, "restart": True},
        }
    )
    tree.wait_for_pids(2)
    for died in range(3):
        tree.wait_for_ready(died + 1)
        assert len(_running(tree, "worker")) == 1, "the death of one child is not that of another"
        os.kill(_running(tree, "gateway")[0], signal.SIGKILL)
    code, events, said = tree.outcome()
    assert code == 128 + signal.SIGKILL
    assert [event["wait_s"] for event in events if event["event"] == "restart"] == [0.05, 0.1]
    assert "gateway died 3 times in 10 minutes of service: not started again. Add memory." in said
    assert not any(alive(pid) for pid in tree.pids())


def test_deaths_that_lie_far_apart_are_forgiven(grow: Grow) -> None:
    tree = grow({"gateway": {"code": READY, "restart": True, "limit": {"deaths": 2, "within_s": 0.2}}})
    for died in range(4):
        tree.wait_for_ready(died + 1)
        time.sleep(0.3)
        os.kill(_running(tree, "gateway")[0], signal.SIGKILL)
    tree.wait_for_ready(5)
    assert tree.end()[0] == 0


def test_gateway_that_does_not_get_ready_again_is_given_up_however_long_it_tries(grow: Grow) -> None:
    once = NOTE + (
        "if os.path.exists(os.environ['FOLDER'] + '/pids'): time.sleep(0.5); sys.exit('no memory left')\n"
        "note(os.getpid())\nprint('ready')\n"
    )
    limit = {"deaths": 3, "within_s": 0.2}
    tree = grow({"gateway": {"code": once + SLEEP, "restart": True, "limit": limit}})
    tree.wait_for_ready(1)
    os.kill(tree.pids()[0], signal.SIGKILL)
    code, events, said = tree.outcome()
    assert code == 1
    assert len([event for event in events if event["event"] == "restart"]) == 2
    assert "  no memory left" in said


def test_others_start_only_after_the_first_has_passed(grow: Grow) -> None:
    tree = grow({"model": {"code": "print('ready')", "passing": True}, "gateway": {"code": SLEEPER}})
    tree.wait_for_pids(1)
    _, events, _ = tree.end()
    order = [(event["event"], event["name"]) for event in events]
    assert order[:3] == [("started", "model"), ("ended", "model"), ("started", "gateway")]


def test_nothing_else_starts_when_the_first_fails(grow: Grow) -> None:
    tree = grow(
        {
            "model": {"code": "import sys; sys.exit('no such model')", "passing": True},
            "gateway": {"code": SLEEPER},
        }
    )
    code, events, said = tree.outcome()
    assert code == 1
    assert "  no such model" in said
    assert [event["name"] for event in events if event["event"] == "started"] == ["model"]


def test_output_is_kept_per_child_whatever_it_is(grow: Grow) -> None:
    noisy = NOTE + (
        "sys.stdout.buffer.write(b'\\x1b[31mred\\x1b[0m \\xff\\n' + b'x' * 300_000 + b'\\nno newline')\n"
        "sys.stdout.flush()\nnote(os.getpid())\n" + SLEEP
    )
    tree = grow({"gateway": {"code": noisy}})
    tree.wait_for_pids(1)
    time.sleep(0.5)
    _, _, said = tree.end()
    log = (tree.folder / "logs" / "gateway.log").read_text()
    assert log.count("x") >= 300_000
    assert "no newline" in log
    assert "gateway │ [31mred[0m" in said, "escape characters do not reach the terminal"
    assert "\x1b" not in said
