"""`latentevolve memory` against the real routes on a real port, with a scripted model behind them."""

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.episode import Episode, StoreUnavailableError, new_id, prompt_digest
from tests.cli.conftest import Ran
from tests.cli.server import Server
from tests.tables import row

Run = Callable[..., Ran]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path / f"data-{len(servers)}"))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(started: Callable[[], Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that the settings point at."""
    made = started()
    monkeypatch.setenv("LATENTEVOLVE_GATEWAY_URL", made.url)
    return made


def said(ran: Ran) -> Any:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_what_is_exported_here_is_imported_there(
    run: Run, server: Server, started: Callable[[], Server], tmp_path: Path
) -> None:
    server.remember(5)
    file, other = tmp_path / "memory.tar", started()
    assert "5 episodes" in run("memory", "export", str(file)).out
    exported = file.read_bytes()
    assert said(run("memory", "import", str(file), "--url", other.url, "--json")) == {
        "episodes": 5,
        "added": 5,
        "skipped": 0,
    }
    assert (
        "0 episodes are remembered anew, 5 were there"
        in run("memory", "import", str(file), "--url", other.url).out
    )
    told = said(run("memory", "export", str(file), "--url", other.url, "--json"))
    assert told == {"file": str(file), "episodes": 5, "bytes": len(exported)}
    assert file.read_bytes() == exported
    assert tarfile.is_tarfile(file)


def test_an_archive_of_another_tenant_is_taken_by_its_name(run: Run, server: Server, tmp_path: Path) -> None:
    server.remember(2)
    file = tmp_path / "memory.tar"
    assert run("memory", "export", str(file)).code == 0
    wrong = run("memory", "import", str(file), "--tenant", "acme")
    assert wrong.code == 1
    assert "tenant 'default'" in wrong.err
    assert "2 were there already" in run("memory", "import", str(file), "--tenant", "default").out


def test_an_export_that_breaks_off_leaves_the_file_that_was_there(
    run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = server.remember(2)
    file = tmp_path / "memory.tar"
    file.write_text("older")

    def breaks(**_: Any) -> Iterator[Episode]:
        yield first
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(server.gateway.store, "scroll", breaks)
    ran = run("memory", "export", str(file))
    assert ran.code == 1
    assert "broke off" in ran.err
    assert file.read_text() == "older"
    assert [path.name for path in tmp_path.glob("*memory*")] == ["memory.tar"]


def test_an_archive_that_is_refused_says_why(run: Run, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "memory.tar"
    assert run("memory", "import", str(file)).code == 2
    server.remember(2)
    run("memory", "export", str(file))
    space = server.gateway.space.encode()
    file.write_bytes(file.read_bytes().replace(space, b"e" * len(space)))
    ran = run("memory", "import", str(file))
    assert ran.code == 1
    assert "e" * len(space) in ran.err
    assert server.gateway.space in ran.err


def test_episodes_are_listed_by_filter_and_over_pages(run: Run, server: Server) -> None:
    episodes = server.remember(130)
    rows = said(run("memory", "list", "--limit", "120", "--json"))["data"]
    assert len({row["id"] for row in rows}) == 120
    ran = run("memory", "list", "--reward-min", "0.5", "--limit", "3")
    assert ran.out.count("question") == 3
    assert "\x1b" not in ran.out
    assert "more" in ran.err
    assert "nothing is remembered" in run("memory", "list", "--effort", "high").out
    assert episodes[-1].id in run("memory", "list", "--reward-min", "0.99").out
    wrong = run("memory", "list", "--since", "yesterday")
    assert wrong.code == 1
    assert "since" in wrong.err
    unknown = run("memory", "list", "--cluster", "v1/0")
    assert unknown.code == 1
    assert "no row 'v1/0'" in unknown.err


def test_a_text_or_an_episode_finds_what_is_like_it(run: Run, server: Server) -> None:
    first, *_ = server.remember(3)
    assert "question 0" in run("memory", "search", "question").out
    neighbours = said(run("memory", "search", "--id", first.id, "--k", "2", "--json"))["data"]
    assert first.id not in [one["episode"]["id"] for one in neighbours]
    assert len(neighbours) == 2
    assert "nothing like it" in run("memory", "search", "sum", "--floor", "1").out
    assert run("memory", "search").code == 2
    assert run("memory", "search", "a", "--id", first.id).code == 2


def test_nothing_is_forgotten_but_what_is_named(run: Run, server: Server) -> None:
    episodes = server.remember(10)
    count = server.gateway.store.count
    for wrong in ((), ("--all", "--effort", "low"), (episodes[0].id, "--all")):
        assert run("memory", "delete", *wrong).code == 2
    assert run("memory", "delete", new_id()).code == 1
    assert "nothing is kept of a request" in run("memory", "delete", "--request", new_id()).err
    assert count() == 10
    ran = run("memory", "delete", episodes[0].id, missing := new_id(), episodes[1].id)
    assert "2 episodes are forgotten" in ran.out
    assert (ran.code, missing in ran.err) == (1, True)
    assert said(run("memory", "compact", "--json")) == {"compacted": True}
    assert "nothing was deleted" in run("memory", "compact").out
    assert said(run("memory", "delete", "--reward-max", "0.45", "--json"))["deleted"] == 3
    made = row(server.engine.neutral_latent(), np.eye(1, server.engine.space.hidden_size), 0.9)
    learned = {"0": [prompt_digest(episodes[9].prompt_token_ids)]}
    server.gateway.registry.publish([made], {"learned": learned, "labels": [], "trainings": []})
    assert "trained on them" not in run("memory", "delete", episodes[8].id).out
    told = run("memory", "delete", "--all").out
    assert "4 episodes are forgotten" in told
    assert "trained on them: v1" in told
    assert "serves no more" in told
    assert count() == 0


def test_an_export_into_a_folder_is_wrong_usage(run: Run, server: Server, tmp_path: Path) -> None:
    ran = run("memory", "export", str(tmp_path))
    assert (ran.code, "is a folder" in ran.err) == (2, True)
