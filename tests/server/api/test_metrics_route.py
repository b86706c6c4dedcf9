"""GET /metrics: names by Prometheus' rules, and what a request, a night and the disk leave in it."""

import asyncio
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from memory.experiment import ARMS, Experiments, Value
from memory.night import NightLog
from memory.tenants import partition
from server.api.scopes import PUBLIC
from tests.server.api.conftest import Serve, Served

API_PAGE = Path(__file__).parents[3] / "docs" / "api.md"

WITHOUT_UNIT = {
    "latentevolve_recall_similarity",
    "latentevolve_reward",
}
"""Histograms of numbers that have none."""


async def scraped(served: Served, key: str | None = None) -> dict[str, Metric]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = await served.http.get("/metrics", headers=headers)
    assert answer.status_code == 200
    text = answer.text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """Return the value of a sample; None: there is none."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found[0] if found else None


async def test_names_and_labels_keep_the_rules(served: Served) -> None:
    await served.chat("sum two and two", latent={"effort": "high"})
    await served.chat("poem of rain", latent={"effort": "extreme"})
    families = await scraped(served)
    assert families
    for name, family in families.items():
        assert re.fullmatch(r"latentevolve(_[a-z]+)+", name)
        assert family.documentation.endswith(".")
        if family.type == "histogram" and name not in WITHOUT_UNIT:
            assert name.endswith("_seconds"), name
        for sample in family.samples:
            assert family.type != "counter" or sample.name.endswith(("_total", "_created")), name
            assert family.type == "counter" or not name.endswith("_total"), name
            for label, held in sample.labels.items():
                assert re.fullmatch(r"[a-z_]+", label), name
                assert len(held) < 64, f"{name}: a label holds {held!r}"


async def test_promtool_finds_no_fault(served: Served) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    await served.chat("sum two and two", latent={"effort": "high"})
    text = (await served.http.get("/metrics")).text
    command = [promtool, "check", "metrics"]
    found = await asyncio.to_thread(subprocess.run, command, input=text, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


async def test_overhead_is_the_time_that_was_not_the_engines(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.chat("sum two and two", latent={"effort": "high"})
    await served.gateway.remember.drain()
    served.engine.delay_s = 0.2
    near = served.gateway.store.near

    def slowly(*args: object, **options: object) -> object:
        time.sleep(0.1)
        return near(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(served.gateway.store, "near", slowly)
    begun = time.monotonic()
    answer = await served.chat("sum three and four")
    elapsed = time.monotonic() - begun
    assert answer.headers["x-latent-mode"] == "recall"
    families = await scraped(served)
    overhead = value(families, "latentevolve_overhead_seconds_sum", effort="low")
    assert overhead is not None
    assert overhead >= 0.1, "recall is ours"
    assert elapsed - overhead >= 0.39, "the key and the answer are the engine's"
    assert value(families, "latentevolve_overhead_seconds_count", effort="low") == 1


async def test_overhead_is_of_answers_alone(served: Served) -> None:
    await served.chat(latent={"effort": "extreme"})
    await served.chat(model="another")
    families = await scraped(served)
    assert not families["latentevolve_overhead_seconds"].samples


async def test_answers_are_counted_by_class_of_status_but_for_probes(served: Served) -> None:
    for path in (*PUBLIC, "/v1/models", "/v1/priors", "/v1/latent/traces/none"):
        await served.http.get(path)
    await served.chat(**{"break": "before"})
    families = await scraped(served)
    statuses = {
        status: value(families, "latentevolve_responses_total", status=status)
        for status in ("2xx", "4xx", "5xx")
    }
    assert statuses == {"2xx": 2, "4xx": 1, "5xx": 1}


async def test_nights_are_counted_by_how_they_ended(served: Served) -> None:
    log = NightLog(served.gateway.state)
    for _ in range(2):
        night = log.create(served.engine.space.id, "api")
        log.update(replace(night, state="failed", error="for a test"))
    log.update(replace(log.create("another space", "api"), state="failed", error="for a test"))
    log.create(served.engine.space.id, "api")
    families = await scraped(served)
    assert value(families, "latentevolve_nights", tenant="default", state="failed") == 2
    assert value(families, "latentevolve_nights", tenant="default", state="queued") == 1
    assert value(families, "latentevolve_nights", tenant="default", state="promoted") == 0
    ended = value(families, "latentevolve_night_end_timestamp_seconds", tenant="default", state="failed")
    assert ended is not None
    assert abs(ended - time.time()) < 3600
    assert (
        value(families, "latentevolve_night_end_timestamp_seconds", tenant="default", state="promoted")
        is None
    )
    assert not families["latentevolve_night_overdue_timestamp_seconds"].samples


PER_TENANT = (
    "latentevolve_active_prior",
    "latentevolve_prior_rows",
    "latentevolve_nights",
    "latentevolve_night_end_timestamp_seconds",
    "latentevolve_experiment_units",
    "latentevolve_experiment_mean",
    "latentevolve_experiment_difference",
)


async def test_every_tenant_is_shown_to_whoever_may_see_all_and_to_nobody_else(serve: Serve) -> None:
    served = await serve(api_key="operator", holdout_share=0.5)
    gateway = served.gateway
    keys = {
        scope: gateway.doorman.keys.create("a key", [scope], tenant=tenant)[1]
        for scope, tenant in (("admin", "mine"), ("infer", "another"), ("memory:read", "default"))
    }
    log = NightLog(gateway.state)
    for tenant, state in (("default", "skipped"), ("mine", "failed"), ("another", "cancelled")):
        night = log.create(partition(gateway.space, tenant), "api")
        log.update(replace(night, state=state, error="for a test"))
        outcome = [Value("rating", arm, f"{arm} {user}", 1.0) for arm in ARMS for user in range(2)]
        await asyncio.to_thread(Experiments(gateway.state, gateway.space).note, tenant, outcome)
    await gateway.experiment.look()

    everything = await scraped(served, "operator")
    for name in PER_TENANT:
        tenants = {sample.labels["tenant"] for sample in everything[name].samples}
        assert tenants == {"default", "mine", "another"}, name
    assert value(everything, "latentevolve_nights", tenant="mine", state="failed") == 1
    assert value(everything, "latentevolve_nights", tenant="mine", state="skipped") == 0
    for key in (None, "nonsense", *keys.values()):
        for family in (await scraped(served, key)).values():
            for sample in family.samples:
                assert sample.labels.get("tenant", "default") == "default", (key, sample)
        assert (await scraped(served, key))["latentevolve_nights"].samples


async def test_disk_of_the_data_is_shown_with_its_floor(serve: Serve) -> None:
    families = await scraped(await serve(min_free_mib=3))
    assert value(families, "latentevolve_data_floor_bytes") == 3 * 2**20
    free, size = (value(families, f"latentevolve_data_{name}_bytes") for name in ("free", "size"))
    assert free is not None
    assert size is not None
    assert 0 < free <= size


async def test_page_of_the_api_lists_every_metric(served: Served) -> None:
    page = API_PAGE.read_text()
    for family in (await scraped(served)).values():
        if family.name.endswith("_created"):  # the client library's own
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page, name
