"""What the injection reads out of a request."""

import json
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field

from model.engine import Decoding, SteeredPrompt
from model.placement import Placement
from server.engine.decoding import Native
from server.engine.guard import real_tokens
from server.engine.injection import (
    asked_length,
    choices_of,
    format_rules,
    held_to,
    question_of,
    reasoning_arguments,
    scorable,
    scored,
    why_untouched,
)
from server.engine.vllm import VLLMEngine
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import options

TOKENS = {"type": "token", "prompt_token_ids": [1, 2, 3]}


def grammar(**fields: Any) -> SimpleNamespace:
    kinds = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
    return SimpleNamespace(**(dict.fromkeys(kinds) | fields))


def test_what_an_answer_is_held_to_is_told_apart_by_kind_and_content() -> None:
    fields: list[dict[str, Any]] = [
        {"choice": ["a", "b"]},
        {"choice": ["a", "c"]},
        {"json_object": True},
        {"json": {"type": "object"}},
        {"regex": "a|b"},
        {"grammar": "a|b"},
        {"structural_tag": "a|b"},
    ]
    held = {held_to(grammar(**each)) for each in fields}
    assert len(held) == len(fields)
    assert held == {held_to(grammar(**each)) for each in fields}
    assert held_to(None) is None
    assert None not in held


def test_the_same_choices_in_another_order_are_the_same_grammar() -> None:
    assert held_to(grammar(choice=["a", "b"])) == held_to(grammar(choice=["b", "a", "b"]))
    backwards = ENUM | {"enum": ENUM["enum"][::-1]}
    assert held_to(grammar(json=ENUM)) == held_to(grammar(json=backwards)) is not None


ENUM: dict[str, Any] = {"type": "string", "enum": ["yes", "no"]}
SAID = ('{"said": "no"}', '{"said": "yes"}')
LOOP = {"properties": {"said": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}}


class Word(Enum):
    YES = "yes"
    NO = "no"


class Reply(BaseModel):
    """As pydantic writes it, and clients that build on it."""

    said: Word = Field(description="In a word.")


CLOSED = {"type": "object", "properties": {"said": ENUM}, "required": ["said"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"choice": ["yes", "no"]}, ("no", "yes")),
        ({"choice": ["no", "yes", "no"]}, ("no", "yes")),
        ({"json": ENUM}, ('"no"', '"yes"')),
        ({"json": json.dumps(CLOSED)}, SAID),
        ({"json": CLOSED | {"additionalProperties": True}}, ()),
        ({"json": {name: CLOSED[name] for name in CLOSED if name[0] != "a"}}, SAID),
        ({"json": Reply.model_json_schema()}, SAID),
        ({"json": CLOSED | {"properties": {"said": {"$ref": "#/$defs/Gone"}}}}, ()),
        ({"json": CLOSED | LOOP}, ()),
        ({"json": CLOSED | {"required": []}}, ()),
        ({"json": CLOSED | {"properties": {"said": ENUM, "why": {"type": "string"}}}}, ()),
        ({"json": CLOSED | {"minProperties": 1}}, ()),
        ({"json": {"enum": ["yes", 1]}}, ()),
        ({"json": {"type": "string"}}, ()),
        ({"json": {"enum": "abc"}}, ()),
        ({"json": "{bad"}, ()),
        ({"json": True}, ()),
        ({"regex": "yes|no"}, ()),
    ],
)
def test_choices_are_what_a_list_or_a_schema_of_one_enum_allows(
    fields: dict[str, Any], choices: tuple[str, ...]
) -> None:
    assert choices_of(grammar(**fields)) == choices


PLAIN = {
    "logit_bias": None,
    "bad_words": [],
    "allowed_token_ids": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.1,
    "logprobs": None,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),  # what the server asks of every request is no wish of this one
        ({"repetition_penalty": 1.0}, False),
        ({"logit_bias": {5: 1.0}}, False),
        ({"bad_words": ["no"]}, False),
        ({"logprobs": 0}, False),
    ],
)
def test_choices_are_scored_where_nothing_shifts_them_and_nobody_asks_for_their_log_probabilities(
    fields: dict[str, Any], expected: bool
) -> None:
    assert scorable(SimpleNamespace(**(PLAIN | fields)), {"repetition_penalty": 1.1}) is expected


def test_more_choices_than_are_worth_it_are_not_scored() -> None:
    few = tuple(f"item {number}" for number in range(64))
    assert scored(few) == few
    assert scored((*few, "one more")) == ()


def test_question_is_the_last_user_message() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "Second"}, {"type": "text", "text": "part?"}]},
        {"role": "tool", "content": "42"},
    ]
    assert question_of(messages) == "Second\npart?"
    assert question_of([SimpleNamespace(role="user", content="Object?")]) == "Object?"
    assert question_of([{"role": "system", "content": "Only this."}]) == ""


@pytest.mark.parametrize(
    ("request_fields", "inputs", "reason"),
    [
        ({}, [TOKENS], None),
        ({}, [TOKENS, TOKENS], "several-prompts"),
        ({}, [{"type": "multimodal"}], "not-text"),
        ({"use_beam_search": True}, [TOKENS], "beam-search"),
        ({"prompt_logprobs": 0}, [TOKENS], "prompt-logprobs"),
        ({"echo": True}, [TOKENS], "prompt-logprobs"),
        ({"kv_transfer_params": {"do_remote_prefill": True}}, [TOKENS], "kv-transfer"),
        ({"logprob_token_ids": [1, 2]}, [TOKENS], "logprob-token-ids"),
    ],
)
def test_requests_that_latents_cannot_join_say_why(
    request_fields: dict[str, Any], inputs: list[Any], reason: str | None
) -> None:
    assert why_untouched(options("low"), SimpleNamespace(**request_fields), inputs) == reason


def test_adapters_are_untouched() -> None:
    request, low = SimpleNamespace(model="tuned"), options("low")
    assert why_untouched(low, request, [TOKENS], {"tuned": object()}) == "adapter"
    assert why_untouched(low, request, [TOKENS], {"other": object()}) is None


def test_effort_none_is_untouched_whatever_the_prompt() -> None:
    assert why_untouched(options("none"), SimpleNamespace(), [TOKENS]) == "effort-none"


def test_length_is_read_from_the_field_the_client_used() -> None:
    chat = SimpleNamespace(max_completion_tokens=None, max_tokens=7)
    assert asked_length(chat, {"max_tokens": 3}) == 7
    assert asked_length(SimpleNamespace(max_completion_tokens=9, max_tokens=7), {}) == 9
    assert asked_length(SimpleNamespace(max_output_tokens=5), {}) == 5
    assert asked_length(SimpleNamespace(max_output_tokens=None), {}) is None
    assert asked_length(SimpleNamespace(max_output_tokens=None), {"max_tokens": 3}) == 3


def test_rules_follow_from_grammar_and_prompt() -> None:
    schema = {"type": "object"}
    assert format_rules(None, "Say hello.") == {}
    assert format_rules(grammar(json=json.dumps(schema)), "") == {"json_schema": schema}
    assert format_rules(grammar(json=schema), "") == {"json_schema": schema}
    assert format_rules(grammar(json_object=True), "") == {"json_object": True}
    assert format_rules(grammar(regex="[0-9]+"), "") == {"regex": "[0-9]+"}
    assert format_rules(None, r"Put the answer in \boxed{}.") == {"boxed": True}
    assert format_rules(grammar(), r"Call a tool, put its answer in \boxed{}.") == {}


def test_choices_are_no_check_for_they_always_hold() -> None:
    assert format_rules(grammar(choice=["a.b", "c"]), "") == {}


def test_placeholders_are_no_tokens_of_the_client() -> None:
    assert real_tokens([5, 6, 6, 6, 7], [True, True, False, False, True]) == [5, 6, 7]


class Asked:
    """A chat completion of vLLM's, as far as its reasoning goes."""

    def __init__(self, ended: bool | None) -> None:
        self.ended = ended

    def build_chat_params(self, template: str, form: str) -> Any:
        def with_defaults(defaults: dict[str, Any]) -> SimpleNamespace:
            return SimpleNamespace(chat_template_kwargs=defaults | {"template": template, "form": form})

        return SimpleNamespace(with_defaults=with_defaults)

    def resolve_reasoning_ended(self, parser: object, tokens: list[int]) -> bool | None:
        assert (parser, tokens) == (None, [])
        return self.ended


RENDERING = {
    "default_template": "jinja",
    "default_template_content_format": "auto",
    "default_template_kwargs": {"enable_thinking": False},
    "parser": SimpleNamespace(reasoning_parser_cls=object),
}


@pytest.mark.parametrize("ended", [True, None])
def test_samples_know_of_reasoning_what_the_answer_knows(ended: bool | None) -> None:
    told = {"enable_thinking": False, "template": "jinja", "form": "auto"}
    assert reasoning_arguments(Asked(ended), RENDERING) == {
        "reasoning_parser_kwargs": {"chat_template_kwargs": told},
        "reasoning_ended": ended,
    }


@pytest.mark.parametrize("parser", [None, SimpleNamespace(reasoning_parser_cls=None)])
def test_servers_without_a_reasoning_parser_are_told_nothing_of_reasoning(parser: object) -> None:
    assert reasoning_arguments(Asked(True), RENDERING | {"parser": parser}) == {}


async def test_samples_are_drawn_with_what_the_request_says_of_reasoning() -> None:
    from vllm import SamplingParams

    drawn = []

    class LLM:
        model_config = SimpleNamespace(dtype=torch.float32, max_model_len=64)
        renderer = SimpleNamespace(validate_token_ids=lambda ids: None)

        def get_tokenizer(self) -> None:
            return None

        async def generate(self, prompt: object, params: Any, request_id: str, **beside: Any) -> Any:
            drawn.append((params.ignore_eos, beside))
            answer = SimpleNamespace(finish_reason="stop", text="a", token_ids=(1,), logprobs=())
            yield SimpleNamespace(outputs=[answer])

    reasoning = {"reasoning_ended": True}
    native = Native(SamplingParams(ignore_eos=True), reasoning)
    engine = VLLMEngine(LLM(), ScriptedEngine().space, Placement("after_header", (), (), None), None)
    await engine.generate([SteeredPrompt((1, 2))], [Decoding(4, native=native)])
    await engine.generate([SteeredPrompt((1, 2))], Decoding(4))
    assert drawn == [(True, reasoning), (False, {})]
