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

from memory.night import NightLog
from server.api.scopes import PUBLIC
from tests.server.api.conftest import Serve, Served

API_PAGE = Path(__file__).parents[3] / "docs" / "api.md"

WITHOUT_UNIT = {
    "latentevolve_recall_similarity",
    "latentevolve_reward",
}
"""Histograms of numbers that have none."""


async def scraped(served: Served) -> dict[str, Metric]:
    text = (await served.http.get("/metrics")).text
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
    assert value(families, "latentevolve_nights", state="failed") == 2
    assert value(families, "latentevolve_nights", state="queued") == 1
    assert value(families, "latentevolve_nights", state="promoted") == 0
    ended = value(families, "latentevolve_night_end_timestamp_seconds", state="failed")
    assert ended is not None
    assert abs(ended - time.time()) < 3600
    assert value(families, "latentevolve_night_end_timestamp_seconds", state="promoted") is None
    assert not families["latentevolve_night_overdue_timestamp_seconds"].samples


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
