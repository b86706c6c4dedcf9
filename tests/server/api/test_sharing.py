"""What two tenants share by consent: one hands over its archive, and the other takes it."""

import asyncio
from dataclasses import replace

from memory.episode import TENANT, is_own_id, new_id, prompt_id
from tests.scripted_engine import ScriptedEngine
from tests.server.api.conftest import Serve
from tests.server.api.test_poisoning import consolidate, of_tenant, remember
from tests.server.api.test_tenants import tenant
from tests.worker.conftest import one_thread, scripted_episodes

__all__ = ["one_thread"]  # a fixture of all that runs nights

EXPORT, IMPORT = "/v1/memory/export", "/v1/memory/import"


async def test_a_tenant_learns_from_the_archive_that_another_has_handed_over(serve: Serve) -> None:
    served = await serve(
        api_key="s3cret", night_steps=40, rewards="consistency=0.7,confidence=0.1,format=0.2"
    )
    acme, globex, other = [await tenant(served, name) for name in ("acme", "globex", "initech")]
    made = await asyncio.to_thread(scripted_episodes, served.engine, 60)
    episodes = [replace(one, trace_id=new_id("acme")) for one in of_tenant(made, "acme")]
    await remember(served, acme, episodes)
    archive = (await acme.ask("GET", EXPORT)).content

    # Nobody takes it by mistake, or as somebody else's.
    for named in ({}, {"tenant": "globex"}, {"tenant": "initech"}):
        refused = await globex.ask("POST", IMPORT, content=archive, params=named)
        assert (refused.status_code, "acme" in refused.json()["error"]["message"]) == (400, True)
    for added in (60, 0):
        taken = await globex.ask("POST", IMPORT, content=archive, params={"tenant": "acme"})
        assert taken.json() == {"episodes": 60, "added": added, "skipped": 60 - added}
    adopted = list(served.gateway.store.scroll(tenant="globex"))
    assert all(is_own_id("globex", one.id) for one in adopted)
    assert {one.prior_version for one in adopted} == {None}
    assert {one.id for one in adopted} == {
        prompt_id(one.space, "globex", one.prompt_token_ids) for one in episodes
    }
    assert (await acme.ask("GET", EXPORT)).content == archive

    assert await consolidate(served, globex) == "promoted"
    question = "sums question number 900"
    learned = await globex.chat(question)
    assert learned.headers["x-latent-reason"] == "prior-covers"
    for stranger in (acme, other):
        assert (await stranger.chat(question)).headers["x-latent-prior"] == "none"

    # Who erases where it comes from reaches no one else; whoever is told of it erases by the same request.
    gone = episodes[0]
    erased = await acme.ask("DELETE", f"/v1/latent/traces/{gone.trace_id}")
    assert (erased.json()["deleted"], erased.json()["priors"]) == (1, [])
    assert served.gateway.store.count(tenant="globex") == 60
    told = await globex.ask("DELETE", f"/v1/latent/traces/{gone.trace_id}")
    assert (told.json()["deleted"], [one["version"] for one in told.json()["priors"]]) == (1, ["v1"])
    assert (await other.ask("DELETE", f"/v1/latent/traces/{gone.trace_id}")).status_code == 404
    again = await globex.ask("POST", IMPORT, content=archive, params={"tenant": "acme"})
    assert again.json()["added"] == 1  # an archive of before brings it back, a later one does not
    later = (await acme.ask("GET", EXPORT)).content
    await globex.ask("DELETE", f"/v1/latent/traces/{gone.trace_id}")
    assert (await globex.ask("POST", IMPORT, content=later, params={"tenant": "acme"})).json()["added"] == 0


def test_an_adopted_episode_has_an_id_of_its_tenants_which_is_always_the_same() -> None:
    [plain, held] = of_tenant(scripted_episodes(ScriptedEngine(), 2), "acme")
    held = replace(held, id=prompt_id(held.space, "acme", held.prompt_token_ids, "a grammar"))
    for one in (plain, held, replace(plain, prompt_token_ids=(), id=new_id("acme"))):
        for whose in (TENANT, "globex"):
            adopted = one.adopted(whose)
            assert adopted.tenant == whose
            assert is_own_id(whose, adopted.id)
            assert adopted.id == one.adopted(whose).id != one.id
            assert adopted.trace_id == one.trace_id
    assert held.adopted("globex").id != prompt_id(held.space, "globex", held.prompt_token_ids)
