"""The official client works on steered requests (issue: held by tests, 2)."""

import numpy as np
import pytest

from tests.e2e.conftest import HEADLINES, STEER, TOPIC, create, messages
from tests.e2e.processes import Gateway


def test_usage_counts_the_prompt_without_its_latents(remembering: Gateway) -> None:
    question = TOPIC.format(HEADLINES[-1])
    steered, _ = create(remembering, question)
    plain = remembering.openai.chat.completions.create(
        model=remembering.model,
        messages=messages(question),
        max_tokens=16,
        temperature=0,
        extra_body={"latent": {"effort": "none"}},
    )
    assert steered.usage.prompt_tokens == plain.usage.prompt_tokens
    assert steered.usage.total_tokens == steered.usage.prompt_tokens + steered.usage.completion_tokens


def test_embeddings_are_the_keys_by_which_memory_is_searched(remembering: Gateway) -> None:
    episodes = remembering.get("/v1/memory/episodes?limit=100")["data"]  # others have asked other things
    newest, headline = next(
        (episode, one)
        for episode in episodes
        for one in HEADLINES
        if TOPIC.format(one) in episode["prompt_text"]
    )
    other = next(one for one in HEADLINES if one != headline)
    texts = [TOPIC.format(headline), TOPIC.format(other), "Write a poem about the sea."]
    answer = remembering.openai.embeddings.create(model=remembering.model, input=texts)
    keys = np.asarray([one.embedding for one in answer.data])
    assert np.linalg.norm(keys, axis=1) == pytest.approx(1, abs=1e-5)
    assert keys[0] @ keys[1] > keys[0] @ keys[2]
    by_text = remembering.post("/v1/memory/search", {"text": texts[0], "k": 3})["data"]
    assert by_text[0]["episode"]["id"] == newest["id"]
    assert by_text[0]["similarity"] == pytest.approx(1, abs=1e-3)
    tokens = remembering.get(f"/v1/memory/episodes/{newest['id']}")["prompt_token_ids"]
    by_tokens = remembering.openai.embeddings.create(model=remembering.model, input=tokens)
    assert by_tokens.usage.prompt_tokens == len(tokens)
    assert float(np.asarray(by_tokens.data[0].embedding) @ keys[0]) == pytest.approx(1, abs=1e-3)


def test_streaming_with_usage_equals_not_streaming(remembering: Gateway) -> None:
    question = TOPIC.format(HEADLINES[-1])
    whole, _ = create(remembering, question)
    stream = remembering.openai.chat.completions.with_raw_response.create(
        model=remembering.model,
        messages=messages(question),
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=STEER,
    )
    assert stream.headers["x-latent-mode"] == "recall"
    text, usage = "", None
    for chunk in stream.parse():
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_n_and_seed(remembering: Gateway) -> None:
    options = {"n": 3, "seed": 7, "temperature": 1.0}
    first, _ = create(remembering, "Say a colour.", **options)
    again, _ = create(remembering, "Say a colour.", **options)
    texts = [choice.message.content for choice in first.choices]
    assert len(texts) == 3
    assert texts == [choice.message.content for choice in again.choices]


def test_stop(remembering: Gateway) -> None:
    free, _ = create(remembering, "Count from one to five in words.", max_tokens=24)
    text = free.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    stopped, _ = create(remembering, "Count from one to five in words.", max_tokens=24, stop=[stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs(remembering: Gateway) -> None:
    answer, _ = create(remembering, "Say a colour.", logprobs=True, top_logprobs=3, max_tokens=5)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) >= 3 and entry.logprob <= 0 for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_responses(remembering: Gateway, stream: bool) -> None:
    raw = remembering.openai.responses.with_raw_response.create(
        model=remembering.model,
        input=TOPIC.format(HEADLINES[1]),
        max_output_tokens=16,
        temperature=0,
        stream=stream,
        extra_body=STEER,
    )
    assert raw.headers["x-latent-mode"] == "recall"
    if not stream:
        answer = raw.parse()
        assert answer.output_text
        assert answer.usage.input_tokens > 0
        return
    events = list(raw.parse())
    assert events[-1].type in {"response.completed", "response.incomplete"}
    assert any(event.type == "response.output_text.delta" for event in events)


@pytest.mark.parametrize(
    ("options", "suffix", "effort"),
    [
        ({"reasoning_effort": "low"}, "", "low"),
        ({}, ":none", "none"),
        ({"extra_body": {"latent": {"effort": "low"}}}, ":none", "low"),
        ({"reasoning_effort": "medium"}, ":none", "none"),
    ],
)
def test_effort_is_chosen_by_the_first_that_is_named(
    remembering: Gateway, options: dict, suffix: str, effort: str
) -> None:
    raw = remembering.openai.chat.completions.with_raw_response.create(
        model=remembering.model + suffix, messages=messages("Hello"), max_tokens=4, temperature=0, **options
    )
    assert raw.headers["x-latent-effort"] == effort
