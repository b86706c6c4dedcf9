"""The schedule over HTTP: shown, changed without a restart, and checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory.night import NightLog
from tests.postgres_server import PostgresServer
from tests.server.api.conftest import Serve, Served


async def test_the_schedule_is_changed_for_every_gateway_and_given_back(
    serve: Serve, tmp_path: Path, postgres: PostgresServer
) -> None:
    shared = {"state_url": postgres.database(), "night_cron": "0 3 * * *"}
    one, other = [await serve(data_dir=tmp_path / name, **shared) for name in ("one", "other")]
    body = (await one.http.get("/v1/schedule")).json()
    assert (body["cron"], body["episodes"]) == ("0 3 * * *", 0)
    assert body["chosen"] == {"cron": None, "episodes": None}
    assert body["next_run"].endswith("T03:00:00Z")
    assert (body["due"], body["erasure"], body["running"], body["last_run"]) == ([], None, None, None)
    changed = await one.http.put("/v1/schedule", json={"cron": " 30  4 * * sun ", "episodes": 50})
    assert changed.status_code == 200
    for served in (one, other):
        body = (await served.http.get("/v1/schedule")).json()
        assert body == changed.json()
        assert (body["cron"], body["episodes"]) == ("30 4 * * sun", 50)
        assert body["settings"] == {"cron": "0 3 * * *", "episodes": 0}
        assert body["next_run"].endswith("T04:30:00Z")
    body = (await other.http.put("/v1/schedule", json={"cron": "never"})).json()
    assert (body["cron"], body["episodes"], body["next_run"]) == ("never", 0, None)
    body = (await one.http.delete("/v1/schedule")).json()
    assert (body["cron"], body["chosen"]) == ("0 3 * * *", {"cron": None, "episodes": None})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"cron": "at noon"}, "cron"),
        ({"cron": "* * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"cron": "\0" * 300}, "cron"),
        ({"episodes": -1}, "episodes"),
        ({"episodes": 2**31}, "episodes"),
        ({"corn": "0 3 * * *"}, "corn"),
    ],
)
async def test_what_is_no_schedule_is_refused_by_the_name_of_its_field(
    served: Served, body: dict[str, Any], param: str
) -> None:
    answer = await served.http.put("/v1/schedule", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await served.http.get("/v1/schedule")).json()["chosen"] == {"cron": None, "episodes": None}


async def test_the_schedule_shows_the_open_night_and_the_last(served: Served) -> None:
    log = NightLog(served.gateway.state)
    ended = log.create(served.engine.space.id, "api")
    log.update(replace(ended, state="refused", version="v1"))
    open_ = log.create(served.engine.space.id, "cli")
    body = (await served.http.get("/v1/schedule")).json()
    assert body["running"] == open_.id
    assert (body["last_run"]["id"], body["last_run"]["state"]) == (ended.id, "refused")
