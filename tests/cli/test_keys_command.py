"""`latentevolve keys` on a data folder without a server, and through one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory.api_keys import ApiKeys, id_of, is_token_of
from memory.state import State
from tests.cli.conftest import Ran
from tests.cli.ports import free_port
from tests.cli.server import Server

Run = Callable[..., Ran]


def here(run: Run, folder: Path, *words: str) -> Ran:
    """Run a command where no server answers."""
    return run("keys", *words, "--data-dir", str(folder))


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Server]:
    """A server with an operator's key."""
    server = Server(tmp_path / "served", api_key="s3cret")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTEVOLVE_PORT", str(free_port()))


def test_the_first_key_is_made_in_the_data_folder_while_no_server_runs(run: Run, tmp_path: Path) -> None:
    ran = here(run, tmp_path, "create", "ops", "--scope", "admin", "--json")
    assert ran.code == 0, ran.err
    shown = json.loads(ran.out)
    with State.in_folder(tmp_path) as state:
        (key,) = ApiKeys(state).all()
    assert id_of(shown["secret"]) == shown["id"] == key.id
    assert is_token_of(key, shown["secret"])
    assert {**shown, "secret": ""} == {**key.to_json(), "secret": ""}


def test_keys_are_listed_rotated_and_revoked_there(run: Run, tmp_path: Path) -> None:
    words = ("--scope", "infer", "--scope", "memory:read", "--tenant", "acme", "--rate-limit", "60/minute")
    made = here(run, tmp_path, "create", "app", *words, "--days", "30")
    name, secret, *_ = made.out.split("\n")
    key_id = name.split()[0]
    assert id_of(secret) == key_id
    listed = here(run, tmp_path, "list")
    for part in (key_id, "acme", "infer memory:read", "60/minute", "works"):
        assert part in listed.out
    assert secret not in listed.out
    rotated = json.loads(here(run, tmp_path, "rotate", key_id, "--json").out)
    assert rotated["secret"] != secret
    other = json.loads(here(run, tmp_path, "create", "other", "--scope", "infer", "--json").out)["id"]
    assert "is revoked" in here(run, tmp_path, "revoke", other).out
    ran = here(run, tmp_path, "revoke", other, key_id)
    assert (ran.code, f"{key_id} (app) is revoked" in ran.out, other in ran.err) == (1, True, True)
    assert "revoked" in here(run, tmp_path, "list").out
    again = here(run, tmp_path, "revoke", key_id)
    assert again.code == 1
    assert "latentevolve keys list" in again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scope", "root"), "scopes:"),
        (("--scope", "infer", "--tenant", "A B"), "tenant:"),
        (("--scope", "infer", "--rate-limit", "fast"), "rate_limit:"),
    ],
)
def test_what_cannot_be_a_key_is_wrong_usage(
    run: Run, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ran = here(run, tmp_path, "create", "app", *words)
    assert ran.code == 2
    assert said in ran.err


def test_a_server_that_answers_is_asked_and_takes_its_operators_key(run: Run, keyed: Server) -> None:
    def ran(*words: str, key: str = "s3cret") -> Ran:
        return run("keys", *words, "--url", keyed.url, "--api-key", key, "--json")

    shown: dict[str, Any] = json.loads(ran("create", "app", "--scope", "infer", "--tenant", "acme").out)
    assert [one["id"] for one in json.loads(ran("list").out)["data"]] == [shown["id"]]
    refused = ran("list", key=shown["secret"])
    assert refused.code == 1
    assert "scope admin" in refused.err
    assert json.loads(ran("rotate", shown["id"]).out)["secret"] != shown["secret"]
    assert json.loads(ran("revoke", shown["id"]).out)["revoked_at"] is not None
    wrong = ran("list", key="wrong")
    assert wrong.code == 1
    assert "--api-key" in wrong.err
