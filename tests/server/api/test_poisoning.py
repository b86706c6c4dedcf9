"""A tenant stores 500 adversarial episodes: nothing changes for another, and its own is bounded."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from memory.episode import Episode, prompt_id
from tests.scripted_engine import CLOSE, POOR, ScriptedEngine
from tests.server.api.conftest import Serve, Served
from tests.server.api.test_tenants import Tenant, archive, tenant
from tests.worker.conftest import TOPICS, one_thread, scripted_episodes
from worker.night import run_night

__all__ = ["one_thread"]  # a fixture of all that runs nights

ADVERSARIAL = 500
LIKE = [f"{topic} question number {number}" for topic in TOPICS for number in range(900, 902)]
"""Of the kinds that are remembered, and never asked before."""
UNLIKE = [f"{topic} question number 1" for topic in ("rivers", "colours", "taxes")]
EFFORTS: Sequence[dict[str, Any]] = (
    {"effort": "low"},
    {"effort": "low", "k": 8, "floor": 0.0},
    {"effort": "medium"},
    {"effort": "high", "steps": 2},
)


def of_tenant(episodes: Sequence[Episode], whose: str) -> list[Episode]:
    return [
        replace(one, tenant=whose, id=prompt_id(one.space, whose, one.prompt_token_ids)) for one in episodes
    ]


def adversarial(engine: ScriptedEngine, whose: str, count: int = ADVERSARIAL) -> list[Episode]:
    """Return wrong answers to what others ask, of the highest reward, behind long latents of no sense."""
    rng, wrong = np.random.default_rng(0), f"{POOR}13"
    length, hidden_size = engine.space.shape
    poisoned = [
        replace(
            one,
            latent=rng.normal(scale=50, size=(length, hidden_size)).astype(np.float32),
            reward=1.0,
            signals={"feedback": 1.0},
            answer_text=wrong,
            answer_token_ids=(*wrong.encode(), CLOSE),
            start_lift=1.0,
        )
        for one in scripted_episodes(engine, count)
    ]
    return of_tenant(poisoned, whose)


async def remember(served: Served, who: Tenant, episodes: list[Episode]) -> None:
    """Store episodes as a client can."""
    content = archive(served, who.name, episodes)
    answer = await who.ask("POST", "/v1/memory/import", content=content)
    assert answer.json()["added"] == len(episodes), answer.text


async def consolidate(served: Served, who: Tenant) -> str:
    """Run a night and return how it ended."""
    night = (await who.ask("POST", "/v1/consolidations")).json()
    assert night["state"] == "queued", night
    record = await run_night(night["id"], served.settings, lambda _: ScriptedEngine())
    await (await served.gateway.tenants.of(who.name)).prior.refresh()
    return record.state


async def said(who: Tenant, questions: Sequence[str], efforts: Sequence[dict[str, Any]]) -> list[Any]:
    """Return what is answered, and how, but for the names of requests."""
    found = []
    for question in questions:
        for effort in efforts:
            answer = await who.chat(question, latent=effort | {"store": False})
            told = {
                name: value
                for name, value in answer.headers.items()
                if name.startswith("x-latent") and name != "x-latent-trace"
            }
            body = {name: value for name, value in answer.json().items() if name not in ("id", "seen")}
            found.append((question, told, body))
    return found


async def moved(served: Served, who: Tenant, question: str) -> float:
    """Return how far a recalled latent goes from its base, relative to the base's norm."""
    answer = await who.chat(question, latent={"effort": "low", "prior": "none", "store": False})
    assert answer.headers["x-latent-mode"] == "recall"
    path = f"/v1/latent/traces/{answer.headers['x-latent-trace']}"
    trace = (await who.ask("GET", path, params={"include": "latent"})).json()
    base = served.engine.neutral_latent()
    return float((torch.tensor(trace["latent"]["values"]) - base).norm() / base.norm())


async def texts(who: Tenant, questions: Sequence[str], effort: str) -> list[str]:
    return [
        (await who.chat(one, latent={"effort": effort, "store": False})).json()["text"] for one in questions
    ]


async def test_poison_of_one_tenant_changes_no_answer_of_another_and_is_bounded_in_its_own(
    serve: Serve, record_property: Callable[[str, object], None]
) -> None:
    served = await serve(
        api_key="s3cret", night_steps=40, rewards="consistency=0.7,confidence=0.1,format=0.2"
    )
    victim, attacker = await tenant(served, "acme"), await tenant(served, "globex")
    await remember(
        served, victim, of_tenant(await asyncio.to_thread(scripted_episodes, ScriptedEngine()), victim.name)
    )
    assert await consolidate(served, victim) == "promoted"
    before = await said(victim, [*LIKE, *UNLIKE], EFFORTS)
    assert {told["x-latent-mode"] for _, told, _ in before} > {"plain", "prior"}
    kept = (await victim.ask("GET", "/v1/memory/export")).content
    plain = await texts(attacker, UNLIKE, "none")

    await remember(served, attacker, await asyncio.to_thread(adversarial, ScriptedEngine(), attacker.name))
    distances = [await moved(served, attacker, question) for question in LIKE]
    recalled = await texts(attacker, UNLIKE, "low")
    ended = await consolidate(served, attacker)

    assert await said(victim, [*LIKE, *UNLIKE], EFFORTS) == before
    assert (await victim.ask("GET", "/v1/memory/export")).content == kept
    assert (await victim.ask("GET", "/v1/priors")).json()["active"] == "v1"
    # In its own the floor keeps it from all that is unlike, before the night and after, and the clamp short.
    assert recalled == plain == await texts(attacker, UNLIKE, "low")
    assert max(distances) <= 1.0 + 1e-3
    rows = (await attacker.ask("GET", "/v1/memory/stats")).json()["prior"]["rows"]
    serving = [row for row, found in rows.items() if found["standing"] == "serves"]
    record_property("moved", [round(one, 3) for one in distances])
    record_property("night", f"{ended}: {len(serving)} of {len(rows)} rows serve")
    print(f"\nmoved {min(distances):.3f} to {max(distances):.3f} of the base; night {ended}, {rows}")


async def test_what_is_proven_to_harm_is_withdrawn_within_the_tenant(serve: Serve) -> None:
    """Of a row that is on trial nothing is served, and proof against it retires it."""
    served = await serve(api_key="s3cret", night_steps=4)
    attacker = await tenant(served, "globex")
    await remember(
        served, attacker, await asyncio.to_thread(adversarial, ScriptedEngine(), attacker.name, 48)
    )
    await consolidate(served, attacker)
    own = await served.gateway.tenants.of(attacker.name)
    serving = own.prior.serving()
    assert serving is not None
    before = {row.id for row in serving.prior.rows}
    for row in serving.whole.rows:
        for number in range(60):  # what explored prompts observe
            await own.prior.observe(f"{number:016x}", {row.id: -1.0})
    after = own.prior.serving()
    assert after is not None
    assert not after.prior.rows
    answer = await attacker.chat(LIKE[0], latent={"effort": "low", "store": False, "floor": 1.0})
    assert answer.headers["x-latent-mode"] == "plain"
    assert before <= {row.id for row in after.whole.rows}
    other = await served.gateway.tenants.of("default")
    assert other.prior.serving() is None
