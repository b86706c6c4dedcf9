"""A stream with a running server in the loop: the real gateway on a scripted model, asked by the client."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.main import app
from cli.failure import USAGE, CommandError
from model.engine import EngineError
from tests.bench.stream.conftest import items_of
from tests.cli.server import Server

SERVED = {
    "low_recalls": True,
    "rewards": "confidence=1",
    "remember_threshold": 0.0,
    "night_min_reward": 0.0,
    "night_min_episodes": 4,
    "night_steps": 4,
    "night_episodes": 0,
    "explore_rollouts": 8,
}


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no key or address of the caller's reach the command."""
    for name in ("LATENTEVOLVE_GATEWAY_URL", "LATENTEVOLVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The stream's file and the prompts unlike it."""
    data, unlike = tmp_path / "questions.jsonl", tmp_path / "unlike.jsonl"
    rows = [{"question": item.question, "answer": item.answer} for item in items_of(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unlike.write_text('{"question": "weather today"}\n{"question": "songs of old"}\n')
    return ["--data", str(data), "--unlike", str(unlike)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "server", works=True, **SERVED)
    yield running
    running.close()


def stream(folder: Path, files: list[str], url: str, *more: str) -> Result:
    sizes = ["--day", "12", "--held-out", "4", "--nights", "1", "--max-tokens", "24"]
    return CliRunner().invoke(app, ["stream", str(folder), *files, *sizes, "--url", url, *more])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_day_a_night_and_held_out_questions_by_http(
    tmp_path: Path, files: list[str], server: Server
) -> None:
    run = tmp_path / "run"
    more = ["--seeds", "0", "--arms", "plain,low,medium"]
    ran = stream(run, files, server.url, *more)
    assert ran.exit_code == 0, ran.output + repr(ran.exception)
    rows = rows_of(run)
    counts = Counter((row["stage"], row["arm"]) for row in rows)
    assert counts == {
        ("start", "plain"): 4,
        ("day-1", "served"): 12,
        ("night-1", "night"): 1,
        ("night-1", "low"): 4,
        ("night-1", "medium"): 4,
        ("night-1", "unlike"): 2,
    }
    (night,) = (row for row in rows if row["arm"] == "night")
    kept = [row["remembered"] for row in rows if "remembered" in row]
    assert night["state"] in ("promoted", "on trial", "refused")
    assert night["episodes"] == len(kept) == len(list(server.gateway.store.scroll())) > 0
    assert 0 < night["labels"] <= len(kept)
    assert all(0 < row["tokens"] <= row["generated"] < row["forward"] for row in rows if "tokens" in row)
    assert all(row["correct"] for row in rows if row["arm"] == "unlike")
    assert json.loads((run / "run.json").read_text())["settings"]["engine"] == "server"
    assert "served" in (run / "report.md").read_text()

    asked = len(server.engine.calls)
    again = stream(run, files, server.url, *more)
    assert again.exit_code == 0, again.output
    assert rows_of(run) == rows
    assert len(server.engine.calls) == asked  # nothing is left to do


def test_what_fails_in_the_server_stops_the_run_which_goes_on_later(
    tmp_path: Path, files: list[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*arguments: Any, **options: Any) -> None:
        raise EngineError("out of order")

    more = ["--seeds", "0", "--arms", "plain", "--day-effort", "medium"]
    with monkeypatch.context() as broken:
        broken.setattr(server.engine, "keys", fails)
        ran = stream(tmp_path / "run", files, server.url, *more)
    assert isinstance(ran.exception, CommandError)
    assert "steering failed: engine-error" in ran.exception.message
    assert {row["stage"] for row in rows_of(tmp_path / "run")} == {"start"}
    again = stream(tmp_path / "run", files, server.url, *more)
    assert again.exit_code == 0, again.output + repr(again.exception)
    assert sum(row["arm"] == "served" for row in rows_of(tmp_path / "run")) == 12


def test_memory_that_is_not_empty_is_no_beginning(tmp_path: Path, files: list[str], server: Server) -> None:
    server.remember(3)
    ran = stream(tmp_path / "run", files, server.url, "--seeds", "0")
    assert isinstance(ran.exception, CommandError)
    assert "remembers 3 episodes already" in ran.exception.message


def test_with_a_key_each_seed_has_a_memory_of_its_own(tmp_path: Path, files: list[str]) -> None:
    server = Server(tmp_path / "server", works=True, api_key="operator", **SERVED)
    server.remember(3)
    run = tmp_path / "run"
    more = ["--seeds", "0,1", "--arms", "plain", "--api-key", "operator", "--day-effort", "medium"]
    try:
        ran = stream(run, files, server.url, *more)
        assert ran.exit_code == 0, ran.output + repr(ran.exception)
        tenants = [json.loads((run / f"seed-{n}" / "key.json").read_text())["tenant"] for n in (0, 1)]
        episodes = Counter(episode.tenant for episode in server.gateway.store.scroll())
    finally:
        server.close()
    assert len(set(tenants)) == 2
    rows = rows_of(run)
    for seed, tenant in enumerate(tenants):
        assert episodes[tenant] == sum(row["seed"] == seed and "remembered" in row for row in rows) > 0
        (night,) = (row for row in rows if row["arm"] == "night" and row["seed"] == seed)
        assert night["episodes"] == episodes[tenant]
    written = [path.read_text() for path in run.rglob("*.json")]
    assert not any("operator" in text or "sk-" in text for text in written)  # no secret is kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0,1"], "has one memory"),
        (["--seeds", "0", "--setting", "recall_k=8"], "are the server's"),
        (["--seeds", "0", "--model", "small"], "are the server's"),
        (["--seeds", "0", "--arms", "majority"], "'majority' is none"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(
    tmp_path: Path, files: list[str], more: list[str], message: str
) -> None:
    ran = stream(tmp_path / "run", files, "http://127.0.0.1:9", *more)
    assert isinstance(ran.exception, CommandError)
    assert message in ran.exception.message
    assert ran.exception.exit_code == USAGE
    assert not (tmp_path / "run").exists()
