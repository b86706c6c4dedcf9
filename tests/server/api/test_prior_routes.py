"""Versions of the prior over HTTP: labels, lineage, what they learned from, comparisons, and the way back."""

import hashlib
from typing import Any

import numpy as np
import pytest

from tests.server.api.conftest import Served
from tests.tables import row


def publish(served: Served, at: int = 0, parent: str | None = None, **manifest: Any) -> str:
    space = served.engine.space
    made = row(served.engine.neutral_latent(), np.eye(space.hidden_size)[[at]], 0.9)
    known = {
        "parent": parent,
        "night": f"night-{at}",
        "labels": [["b", None], ["a", "yes"]],
        "learned": {"0": ["d2", "d1"]},
        "trainings": [],
        "evidence": [{"row": 0, "n": 1, "standing": "on trial", "differences": [["d", 0.5]]}],
    }
    return str(served.gateway.registry.publish([made], known | manifest))


def observe(served: Served, row: str, difference: float) -> None:
    pairs = [(f"prompt-{number}", difference) for number in range(20)]
    served.gateway.state.add_outcomes(served.engine.space.id, "default", row, pairs, "day")


async def labels(served: Served) -> dict[str, list[str]]:
    listed = (await served.http.get("/v1/priors")).json()
    return {entry["version"]: entry["labels"] for entry in listed["versions"]}


async def test_labels_say_what_the_active_version_is(served: Served) -> None:
    first, second = publish(served), publish(served)
    assert await labels(served) == {first: [], second: []}
    served.gateway.registry.activate_unless_pinned(first)
    assert await labels(served) == {first: ["trial"], second: []}
    observe(served, f"{first}/0", 0.9)
    assert await labels(served) == {first: ["serving"], second: []}
    await served.http.post(f"/v1/priors/{second}/activate")
    assert await labels(served) == {first: [], second: ["serving", "pinned"]}
    assert (await served.http.get(f"/v1/priors/{second}")).json()["labels"] == ["serving", "pinned"]
    await served.http.post("/v1/priors/release")
    assert await labels(served) == {first: [], second: ["trial"]}
    observe(served, f"{second}/0", -0.9)
    assert await labels(served) == {first: [], second: []}


async def test_a_version_says_where_it_comes_from_and_what_is_known_of_it_by_now(served: Served) -> None:
    digests = {"episodes_sha256": "e", "dataset_sha256": "s"}
    first = publish(served, 0)
    second = publish(served, 1, parent=first, digests=digests, window={"oldest": 1.0, "newest": 2.0})
    third = publish(served, 2, parent=second)
    observe(served, f"{second}/0", 0.9)
    whole = (await served.http.get(f"/v1/priors/{second}")).json()
    assert [(one["version"], one["night"]) for one in whole["lineage"]] == [
        (second, "night-1"),
        (first, "night-0"),
    ]
    assert whole["trained_on"] == {
        "episodes": 2,
        "prompts": 2,
        **digests,
        "prompts_sha256": hashlib.sha256(b"d1\nd2\n").hexdigest(),
        "window": {"oldest": 1.0, "newest": 2.0},
    }
    assert whole["evidence_now"][f"{second}/0"]["standing"] == "serves"
    assert whole["evidence"][0]["differences"] == [["d", 0.5]]
    assert whole["row_ids"] == [f"{second}/0"]
    older = (await served.http.get(f"/v1/priors/{third}")).json()["trained_on"]
    assert older["episodes_sha256"] == hashlib.sha256(b"a\nb\n").hexdigest()
    assert (older["dataset_sha256"], older["window"]) == (None, None)


async def test_a_lineage_ends_where_a_version_is_gone_or_comes_again(served: Served) -> None:
    lost = publish(served, 0, parent="v99")
    circle = publish(served, 1, parent="v2")
    for version in (lost, circle):
        whole = (await served.http.get(f"/v1/priors/{version}")).json()
        assert [one["version"] for one in whole["lineage"]] == [version]


async def test_a_version_that_cannot_be_read_is_listed_and_shown_with_its_error(served: Served) -> None:
    version = publish(served)
    served.gateway.registry.activate_unless_pinned(version)
    (served.gateway.registry.root / version / "manifest.json").write_text("{")
    [entry] = (await served.http.get("/v1/priors")).json()["versions"]
    assert "cannot be read" in entry["error"]
    whole = (await served.http.get(f"/v1/priors/{version}")).json()
    assert "cannot be read" in whole["error"]
    assert whole["evidence_now"] == {}


async def test_two_versions_are_compared(served: Served) -> None:
    first, second = publish(served, 0), publish(served, 0)
    observe(served, f"{first}/0", 0.9)
    body = (await served.http.get("/v1/priors/compare", params={"a": first, "b": second})).json()
    assert body["rows"] == {"both": [], "only_a": [f"{first}/0"], "only_b": [f"{second}/0"]}
    [match] = body["clusters"]
    assert (match["a"], match["b"], match["same"]) == (f"{first}/0", f"{second}/0", False)
    assert match["key_cosine"] == pytest.approx(1.0)
    assert match["latent_cosine"] == pytest.approx(1.0)
    assert match["a_evidence"]["standing"] == "serves"
    assert match["b_evidence"]["standing"] == "on trial"
    itself = (await served.http.get("/v1/priors/compare", params={"a": first, "b": first})).json()
    assert itself["rows"] == {"both": [f"{first}/0"], "only_a": [], "only_b": []}


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"a": "v1", "b": "v9"}, 404, "version"),
        ({"a": "..", "b": "v1"}, 404, "a"),
        ({"a": "v1", "b": "v1\0"}, 404, "b"),
        ({"a": "v1"}, 400, "b"),
    ],
)
async def test_what_cannot_be_compared_is_named(
    served: Served, asked: dict[str, str], status: int, param: str
) -> None:
    publish(served)
    answer = await served.http.get("/v1/priors/compare", params=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_a_rollback_serves_what_was_active_before(served: Served) -> None:
    first, second = publish(served, 0), publish(served, 1)
    for version in (first, second):
        await served.http.post(f"/v1/priors/{version}/activate")
    answer = await served.http.post("/v1/priors/rollback")
    assert answer.json() == {"active": first, "pinned": True}
    assert (await served.chat()).headers["x-latent-prior"] == first
    listed = (await served.http.get("/v1/priors")).json()
    assert [(found["version"], found["cause"]) for found in listed["activations"]] == [
        (first, "rollback"),
        (second, "operator"),
        (first, "operator"),
        (None, "earlier build"),
    ]
    assert (await served.http.post("/v1/priors/rollback")).json() == {"active": None, "pinned": True}
    nothing = await served.http.post("/v1/priors/rollback")
    assert nothing.status_code == 409
    assert "activate a version" in nothing.json()["error"]["message"]
