"""The memory as a map, and the kinds of request in it."""

import asyncio
from typing import Any

import numpy as np

from memory.episode import Array
from server.landscape import Landscape, Projected, ProjectionError
from server.projection import clusters
from tests.server.api.conftest import Serve, Served
from tests.tables import row

TOPICS = ("sum", "colour", "river")


class Drawer:
    """Draws at once: each kind in a column, in the order of its keys."""

    def __init__(self) -> None:
        self.before: list[Array] = []
        self.failure: str | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, keys: Array, before: Array) -> Projected:
        self.before.append(before)
        await self.may_end.wait()
        if self.failure:
            raise ProjectionError(self.failure)
        numbers = clusters(keys, 0.5)
        return np.stack([numbers, np.arange(len(keys))], axis=1).astype(np.float32) / len(keys), numbers


def drawn_by(served: Served, drawer: Drawer) -> None:
    """Let the gateway's maps be drawn by `drawer`, as often as somebody looks."""
    landscape = Landscape(
        served.gateway.statistics, served.gateway.tenants.prior_of, project=drawer, rest_s=0
    )
    object.__setattr__(served.gateway, "landscape", landscape)


async def looked(served: Served, what: str = "map") -> dict[str, Any]:
    """Return what there is to look at once a first look has had it drawn."""
    await served.http.get(f"/v1/memory/{what}")
    await served.gateway.landscape.settled()
    found: dict[str, Any] = (await served.http.get(f"/v1/memory/{what}")).json()
    return found


async def remember(served: Served, each: int, **fields: Any) -> None:
    for number in range(each):
        for topic in TOPICS[: 3 if number else 2]:  # one river less
            await served.chat(f"{topic} number {number}", latent={"effort": "medium"}, **fields)
    assert await served.gateway.remember.drain()


async def test_a_map_is_drawn_in_the_background_and_shows_every_episode_once(served: Served) -> None:
    drawer = Drawer()
    drawer.may_end.clear()
    drawn_by(served, drawer)
    empty = (await served.http.get("/v1/memory/map")).json()
    assert (empty["state"], empty["updating"], empty["points"]) == ("empty", False, [])
    await remember(served, 3)
    first = (await served.http.get("/v1/memory/map")).json()
    assert (first["state"], first["updating"], first["points"]) == ("drawing", True, [])
    drawer.may_end.set()
    found = await looked(served)
    episodes = (await served.http.get("/v1/memory/episodes")).json()["data"]
    assert found["state"] == "ready"
    assert {one["id"]: one["reward"] for one in found["points"]} == {
        one["id"]: round(one["reward"], 4) for one in episodes
    }
    assert (found["episodes"], found["shown"]) == (8, 8)


async def test_it_is_drawn_again_only_when_memory_has_changed_and_from_where_things_were(
    served: Served,
) -> None:
    drawer = Drawer()
    drawn_by(served, drawer)
    await remember(served, 2)
    first = {one["id"]: [one["x"], one["y"]] for one in (await looked(served))["points"]}
    await looked(served)
    assert len(drawer.before) == 1
    await served.chat("sum of much else", latent={"effort": "medium"})
    assert await served.gateway.remember.drain()
    await looked(served)
    assert len((await looked(served))["points"]) == 6
    assert len(drawer.before) == 2
    before = drawer.before[1]
    new = np.isnan(before[:, 0])
    assert new.sum() == 1
    assert np.allclose(sorted(before[~new].tolist()), sorted(first.values()), atol=1e-3)


async def test_what_was_forgotten_is_on_no_map(served: Served) -> None:
    drawer = Drawer()
    drawn_by(served, drawer)
    await remember(served, 2)
    gone, *_ = (await looked(served))["points"]
    drawer.may_end.clear()  # also while the next one is not there yet
    await served.http.delete(f"/v1/memory/episodes/{gone['id']}")
    found = (await served.http.get("/v1/memory/map")).json()
    assert gone["id"] not in {one["id"] for one in found["points"]}
    kinds = (await served.http.get("/v1/memory/clusters")).json()["clusters"]
    assert gone["id"] not in {one["id"] for kind in kinds for one in kind["typical"]}
    drawer.may_end.set()
    await served.http.delete("/v1/memory/episodes?all=true")
    await looked(served)
    assert (await looked(served))["points"] == []


async def test_kinds_of_request_are_told_in_their_own_words_with_the_evidence_about_them(
    served: Served,
) -> None:
    drawn_by(served, Drawer())
    await remember(served, 3)
    engine, gateway = served.engine, served.gateway
    keys = (await engine.keys([engine.render([{"role": "user", "content": "colour x"}])])).numpy()
    nowhere = (await engine.keys([engine.render([{"role": "user", "content": "unheard of"}])])).numpy()
    latent = engine.neutral_latent()
    version = gateway.registry.publish([row(latent, keys), row(latent, nowhere)], {})
    gateway.state.add_outcomes(
        gateway.space, "default", f"{version}/0", [(str(number), 1.0) for number in range(20)], "night"
    )
    gateway.registry.activate(version)
    await gateway.prior.refresh()
    found = await looked(served, "clusters")
    colour, *others = found["clusters"]
    assert [kind["episodes"] for kind in found["clusters"]] == [3, 3, 2]
    for kind, topic in zip(found["clusters"], ("colour", "sum", "river"), strict=True):
        asked = {one["question"] for one in kind["typical"]}
        assert asked == {f"{topic} number {number}" for number in range(3)} - (
            {"river number 0"} if topic == "river" else set()
        )
    (evidence,) = colour["rows"]
    assert (colour["standing"], evidence["id"], evidence["n"]) == ("serves", f"{version}/0", 20)
    assert evidence["e_value"] > 20
    assert [kind["standing"] for kind in others] == [None, None]
    assert [one["id"] for one in found["others"]] == [f"{version}/1"]
    points = (await looked(served))["points"]
    assert sum(one["cluster"] == colour["number"] for one in points) == 3


async def test_no_words_are_shown_where_none_are_kept(serve: Serve) -> None:
    served = await serve(memory_text="off")
    drawn_by(served, Drawer())
    await remember(served, 2)
    for kind in (await looked(served, "clusters"))["clusters"]:
        assert {one["question"] for one in kind["typical"]} == {None}


async def test_a_map_that_cannot_be_drawn_says_why_and_is_tried_again(served: Served) -> None:
    drawer = Drawer()
    drawer.failure = "no processor"
    drawn_by(served, drawer)
    await remember(served, 2)
    await served.http.get("/v1/memory/map")
    await served.gateway.landscape.settled()
    assert (await served.http.get("/v1/memory/map")).json()["failure"] == "no processor"
    drawer.failure = None
    await served.gateway.landscape.settled()
    await served.http.get("/v1/memory/map")
    await served.gateway.landscape.settled()
    found = (await served.http.get("/v1/memory/map")).json()
    assert (found["state"], found["failure"]) == ("ready", None)
