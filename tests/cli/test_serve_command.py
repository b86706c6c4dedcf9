"""What `serve` refuses before anything heavy starts, and what the tree is made of."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.serve import GATEWAY_LIMIT, ready_facts, tree
from cli.serving import preload as preloading
from cli.serving.claim import check_port, claim, free_port
from cli.serving.preload import preload
from config.settings import Settings
from tests.cli.conftest import Ran

Run = Callable[..., Ran]


def test_port_in_use_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run("serve", "--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert ran.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ran.err
    assert "--port" in ran.err
    assert not (tmp_path / "data" / "logs").exists()


def test_second_serve_on_the_same_data_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    with claim(tmp_path, "http://127.0.0.1:8123"):
        ran = run("serve", "--port", str(free_port()), "--data-dir", str(tmp_path))
    assert ran.code == 1
    assert f"by process {os.getpid()} at http://127.0.0.1:8123" in ran.err
    assert "--data-dir" in ran.err


def test_data_directory_that_cannot_be_made_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = run("serve", "--port", str(free_port()), "--data-dir", str(tmp_path / "file"))
    assert ran.code == 1
    assert "cannot write to data directory" in ran.err


def test_claim_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with claim(tmp_path, "http://127.0.0.1:1"):
            pass


def test_port_can_be_reused_right_after_a_connection() -> None:
    port = free_port()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    check_port("127.0.0.1", port)


def test_tree_is_model_gateway_and_worker(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in tree(Settings(data_dir=tmp_path), worker=True)}
    assert list(specs) == ["model", "gateway", "worker"]
    assert specs["model"].passing
    assert all(specs[name].restart for name in ("gateway", "worker"))
    assert specs["gateway"].limit == GATEWAY_LIMIT, "one that cannot serve ends the tree"


def test_gateway_can_run_alone(tmp_path: Path) -> None:
    assert [spec.name for spec in tree(Settings(data_dir=tmp_path), worker=False)] == ["model", "gateway"]


def test_schedule_that_is_none_is_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTEVOLVE_NIGHT_CRON", "at night")
    ran = run("serve", "--port", str(free_port()))
    assert ran.code == 2
    assert "LATENTEVOLVE_NIGHT_CRON" in ran.err


def test_box_says_when_steering_is_off() -> None:
    facts = ready_facts(Settings(), "http://127.0.0.1:8000", steering=False, keys=False)
    assert "self-check failed" in facts["effort"]


def test_key_is_not_shown_in_the_box() -> None:
    facts = ready_facts(Settings(), "http://127.0.0.1:8000", steering=True, keys=True)
    assert "secret" not in str(facts)
    assert "$LATENTEVOLVE_API_KEY" in facts["try"]


def test_preload_keeps_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preloading, "tcmalloc", lambda: Path("/lib/libtcmalloc.so.4"))
    monkeypatch.setattr(preloading, "openmp", lambda: None)
    assert preload({"LD_PRELOAD": "/lib/mine.so"}) == {"LD_PRELOAD": "/lib/libtcmalloc.so.4:/lib/mine.so"}
    assert preload({"LD_PRELOAD": "/lib/libtcmalloc.so.4"}) == {}
    monkeypatch.setattr(preloading, "tcmalloc", lambda: None)
    assert preload({}) == {}
