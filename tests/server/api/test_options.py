"""The ways to choose an effort, their order, and what each bad value names."""

from typing import Any

import pytest

from config.settings import Settings
from server.api.options import (
    BATCH,
    CHAT,
    COMPLETIONS,
    INVOCATIONS,
    MESSAGES,
    RESPONSES,
    read_options,
    without_suffix,
)
from server.errors import UnknownModelError
from server.steering.prompt import Options, SteeringRejectedError

SERVED = ["small", "org/big:8b"]


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def read(body: dict[str, Any], path: str = CHAT, **values: Any) -> tuple[Options, dict[str, Any]]:
    return read_options(body, path, settings(**values), SERVED)


@pytest.mark.parametrize(
    ("path", "body", "effort", "source"),
    [
        (CHAT, {}, "low", "default"),
        (CHAT, {"latent": None}, "low", "default"),
        (CHAT, {"latent": {}}, "low", "default"),
        (CHAT, {"model": "small:high"}, "high", "model"),
        (CHAT, {"model": "org/big:8b:none"}, "none", "model"),
        (CHAT, {"model": "org/big:8b"}, "low", "default"),
        (CHAT, {"reasoning_effort": "none"}, "none", "reasoning_effort"),
        (CHAT, {"reasoning_effort": "minimal"}, "low", "reasoning_effort"),
        (CHAT, {"reasoning_effort": "medium"}, "medium", "reasoning_effort"),
        (CHAT, {"reasoning_effort": "xhigh"}, "high", "reasoning_effort"),
        (CHAT, {"reasoning_effort": None}, "low", "default"),
        (BATCH, {"reasoning_effort": "medium"}, "medium", "reasoning_effort"),
        (INVOCATIONS, {"reasoning_effort": "medium"}, "medium", "reasoning_effort"),
        (RESPONSES, {"reasoning": {"effort": "high"}}, "high", "reasoning_effort"),
        (RESPONSES, {"reasoning": {"summary": "auto"}}, "low", "default"),
        (RESPONSES, {"reasoning_effort": "high"}, "low", "default"),
        (MESSAGES, {"reasoning_effort": "high"}, "low", "default"),
        (MESSAGES, {"model": "small:medium"}, "medium", "model"),
        (COMPLETIONS, {"latent": {"effort": "high"}}, "high", "latent.effort"),
    ],
)
def test_effort_is_found_where_it_is_named(path: str, body: dict[str, Any], effort: str, source: str) -> None:
    options, _ = read(body, path)
    assert (options.effort, options.effort_source) == (effort, source)


def test_first_named_wins() -> None:
    body = {"latent": {"effort": "none"}, "model": "small:medium", "reasoning_effort": "high"}
    assert read(body)[0].effort_source == "latent.effort"
    body["latent"] = {"k": 3}
    assert read(body)[0].effort == "medium"
    body["model"] = "small"
    assert read(body)[0].effort == "high"
    assert read(body, reasoning_effort_steers=False)[0].effort_source == "default"


def test_vllm_gets_the_body_without_our_fields() -> None:
    body = {"model": "small:low", "latent": {"k": 2}, "reasoning_effort": "high", "seed": 7}
    _, rest = read(body)
    assert rest == {"model": "small", "reasoning_effort": "high", "seed": 7}
    assert "latent" in body, "the caller's body must stay as it was"


def test_body_without_our_fields_is_passed_on_as_it_came() -> None:
    body = {"model": "small", "reasoning_effort": "low"}
    assert read(body)[1] is body


def test_every_option_arrives() -> None:
    chosen = {
        "effort": "medium",
        "search": "gradient",
        "k": 7,
        "floor": -0.5,
        "steps": 3,
        "budget_tokens": 1000,
        "deadline_s": 2,
        "prior": "v12",
        "store": False,
        "seed": 0,
    }
    options, _ = read({"latent": chosen})
    assert {name: getattr(options, name) for name in chosen} == chosen


@pytest.mark.parametrize(
    ("path", "body", "stored"),
    [
        (CHAT, {}, True),
        (CHAT, {"store": None}, True),
        (CHAT, {"store": True}, True),
        (CHAT, {"store": False}, False),
        (RESPONSES, {"store": False}, False),
        (CHAT, {"store": False, "latent": {"store": True}}, False),
        (CHAT, {"store": True, "latent": {"store": False}}, False),
    ],
)
def test_either_word_against_storing_counts(path: str, body: dict[str, Any], stored: bool) -> None:
    options, rest = read(body, path)
    assert options.store is stored
    assert rest.get("store") == body.get("store")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"latent": "high"}, "latent"),
        (CHAT, {"latent": ["high"]}, "latent"),
        (CHAT, {"latent": {"effort": "extreme"}}, "latent.effort"),
        (CHAT, {"latent": {"effort": 1}}, "latent.effort"),
        (CHAT, {"latent": {"search": "hope"}}, "latent.search"),
        (CHAT, {"latent": {"k": 0}}, "latent.k"),
        (CHAT, {"latent": {"k": 65}}, "latent.k"),
        (CHAT, {"latent": {"k": "4"}}, "latent.k"),
        (CHAT, {"latent": {"k": True}}, "latent.k"),
        (CHAT, {"latent": {"floor": 1.5}}, "latent.floor"),
        (CHAT, {"latent": {"floor": float("nan")}}, "latent.floor"),
        (CHAT, {"latent": {"steps": 0}}, "latent.steps"),
        (CHAT, {"latent": {"steps": 1.0}}, "latent.steps"),
        (CHAT, {"latent": {"budget_tokens": 0}}, "latent.budget_tokens"),
        (CHAT, {"latent": {"deadline_s": 0}}, "latent.deadline_s"),
        (CHAT, {"latent": {"deadline_s": float("inf")}}, "latent.deadline_s"),
        (CHAT, {"latent": {"prior": "../v1"}}, "latent.prior"),
        (CHAT, {"latent": {"prior": "v0"}}, "latent.prior"),
        (CHAT, {"latent": {"store": "no"}}, "latent.store"),
        (CHAT, {"latent": {"seed": -1}}, "latent.seed"),
        (CHAT, {"latent": {"seed": 2**63}}, "latent.seed"),
        (CHAT, {"latent": {"effrot": "low"}}, "latent.effrot"),
        (COMPLETIONS, {"latent": {"k": 0}}, "latent.k"),
    ],
)
def test_bad_value_names_its_field(path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(SteeringRejectedError) as refusal:
        read(body, path)
    assert refusal.value.param == param
    assert str(refusal.value).startswith(param)


def test_effort_of_another_name_is_an_unknown_model() -> None:
    with pytest.raises(UnknownModelError) as refusal:
        read({"model": "small:extreme"})
    assert refusal.value.param == "model"


@pytest.mark.parametrize("model", ["other", "other:low", ":low", "", None, 3])
def test_model_that_is_not_ours_is_left_to_vllm(model: Any) -> None:
    body = {"model": model}
    assert read(body)[1] is body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"reasoning_effort": "extreme"}),
        (CHAT, {"reasoning_effort": ["high"]}),
        (CHAT, {"reasoning_effort": 3}),
        (RESPONSES, {"reasoning": {"effort": "extreme"}}),
        (RESPONSES, {"reasoning": "high"}),
    ],
)
def test_reasoning_effort_that_is_none_is_left_to_vllm(path: str, body: dict[str, Any]) -> None:
    options, rest = read(body, path)
    assert (options.effort, options.effort_source) == ("low", "default")
    assert rest is body


def test_suffix_alone_can_be_taken_off() -> None:
    body = {"model": "org/big:8b:high", "latent": {"k": "left alone"}}
    assert without_suffix(body, SERVED) == {"model": "org/big:8b", "latent": {"k": "left alone"}}
    assert body["model"] == "org/big:8b:high", "the caller's body must stay as it was"
    for model in ("small", "other:high", None, 3):
        other = {"model": model}
        assert without_suffix(other, SERVED) is other
    with pytest.raises(UnknownModelError):
        without_suffix({"model": "small:extreme"}, SERVED)
