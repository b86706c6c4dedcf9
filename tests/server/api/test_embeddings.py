"""POST /v1/embeddings: the keys of requests, as OpenAI's clients ask for them."""

import base64
import json
from typing import Any

import numpy as np
import openai
import pytest

from server.api.embeddings import MAX_INPUTS
from tests.scripted_engine import CLOSE
from tests.server.api.conftest import Served
from tests.server.api.inner import MODEL


def client_of(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url="http://localhost/v1", api_key="none", http_client=served.http, max_retries=0
    )


async def test_official_client_gets_the_keys_under_which_requests_are_remembered(served: Served) -> None:
    await served.chat("sum two and two", latent={"effort": "high"})
    await served.gateway.remember.drain()
    [episode] = served.gateway.store.scroll()
    client = client_of(served)
    texts = ["sum two and two", "paint a house"]
    answer = await client.embeddings.create(model=MODEL, input=texts)
    assert [one.index for one in answer.data] == [0, 1]
    assert (answer.object, answer.model, answer.data[0].object) == ("list", MODEL, "embedding")
    keys = np.asarray([one.embedding for one in answer.data], np.float32)
    assert np.linalg.norm(keys, axis=1) == pytest.approx(1, abs=1e-6)
    assert keys[0] == pytest.approx(episode.key, abs=1e-6)
    assert float(keys[0] @ keys[1]) < 0.5
    rendered = [served.engine.render([{"role": "user", "content": text}]) for text in texts]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, rendered))

    for input in (list(rendered[1]), [list(rendered[1])], "paint a house", ["paint a house"]):
        alone = await client.embeddings.create(model=f"{MODEL}:high", input=input, encoding_format="float")
        assert [one.embedding for one in alone.data] == [answer.data[1].embedding]
        assert alone.model == MODEL


async def test_base64_is_float32_in_little_endian_order(served: Served) -> None:
    body = {"model": MODEL, "input": "sum", "dimensions": served.engine.space.hidden_size}
    numbers, packed = [
        (await served.http.post("/v1/embeddings", json=body | fields)).json()["data"][0]["embedding"]
        for fields in ({}, {"encoding_format": "base64"})
    ]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == numbers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": [CLOSE + 1]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": "a" * 9000}, "input"),
        ({"input": "a" * 2**20}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"model": None}, "model"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": MODEL, "input": "a"} | fields)
    headers = {"content-type": "application/json"}
    answer = await served.http.post("/v1/embeddings", content=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, 400, "BadRequestError")


async def test_a_model_that_is_not_served_is_not_found(served: Served) -> None:
    client = client_of(served)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.embeddings.create(model="large", input="a")
    with pytest.raises(openai.NotFoundError, match="extreme"):
        await client.embeddings.create(model=f"{MODEL}:extreme", input="a")


async def test_an_engine_that_is_gone_is_unavailable(served: Served) -> None:
    served.engine.alive = False
    answer = await served.http.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
    assert answer.status_code == 503
