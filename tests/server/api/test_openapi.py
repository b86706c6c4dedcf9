"""Every route of ours keeps what its schema says, whatever is sent."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.server.api.conftest import Parts, _served

OURS = [
    "memory",
    "latent",
    "feedback",
    "embeddings",
    "health",
    "keys",
    "priors",
    "consolidations",
    "schedule",
    "experiments",
]
OPERATOR = {"authorization": "Bearer s3cret"}
ARCHIVE = "/v1/memory/import"
"""Takes no JSON: tests/memory/test_archive.py has what is sent there."""
BY_VALUE = (positive_data_acceptance,)
"""What a schema cannot say is refused too, such as a year or a rating that is a text."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway on scripted parts, behind a real socket, in a loop of its own."""
    root = tmp_path_factory.mktemp("gateway")
    started, ended = threading.Event(), asyncio.Event()
    found: dict[str, object] = {}

    async def run() -> None:
        found["loop"] = asyncio.get_running_loop()
        async with _served(root, Parts(), True, {"api_key": "s3cret"}) as served:
            served.http.headers.update(OPERATOR)
            config = uvicorn.Config(served.app, port=0, lifespan="off", log_config=None)
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            found["port"] = server.servers[0].sockets[0].getsockname()[1]
            await served.chat("sum two and two", reasoning_effort="medium")
            started.set()
            await ended.wait()
            server.should_exit = True
            await serving

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{found['port']}"
    found["loop"].call_soon_threadsafe(ended.set)
    thread.join(30)


@pytest.fixture(scope="module")
def described(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json", headers=OPERATOR)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("tag", OURS)
def test_every_answer_is_one_that_the_schema_knows(
    described: schemathesis.BaseSchema, tag: str, mode: GenerationMode
) -> None:
    operations = [
        found.ok() for found in described.include(tag=tag).exclude(path=ARCHIVE).get_all_operations()
    ]
    assert operations

    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=20, suppress_health_check=list(HealthCheck))
        def answers(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=OPERATOR, timeout=10, excluded_checks=BY_VALUE)

        # Of some requests nothing can be wrong: a name in a path may be any text.
        with suppress(Unsatisfiable) if mode.is_negative else nullcontext():
            answers()
