"""Reward signals: what earns, what does not, and what does not apply."""

import asyncio
import json
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from model.engine import Decoding, Generation
from model.final_answer import boxed, final_answer, final_span
from server.steering.rewards.confidence import Confidence, final_confidence
from server.steering.rewards.consistency import Consistency
from server.steering.rewards.format import RULE_CHARS, Format, are_in_form
from server.steering.rewards.scorer import RewardSettingsError, Scorer, parse_weights
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import answer, rendered

ENGINE = ScriptedEngine()
PROMPT = rendered(ENGINE)


async def test_forms_are_checked_while_every_thread_of_the_loop_waits_for_a_state() -> None:
    loop, go_on = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    waiting = asyncio.create_task(asyncio.to_thread(go_on.wait, 60))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        assert await are_in_form(PROMPT, [answer("4")]) == [True]
    go_on.set()
    await waiting


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"We get \boxed{12}", "The answer is 12."),
        (r"\boxed{\frac{1}{2}}", r"so it is $\boxed{ \frac{1}{2} }$"),
        ("It costs $1,000.50 in all", "1000.5"),
        ("3 + 4 = 7.0", "007"),
        ("−5", "-5"),
        ('{"b": 1, "a": [2]}', '```json\n{"a": [2],\n "b": 1}\n```'),
        ("The answer is: Sports.", "sports"),
        ("News: Sports", "The topic of this news is Sports."),
        ("It's Rome", "the capital of Italy is Rome!"),
        ("It is true.", "True"),
        ("The Lion", "lion"),
        ("A", "(a)"),
        (r"\boxed{A}", "The answer is A."),
        ("Yes!", " yes "),
        (
            'So: <tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>',
            '<tool_call>{"arguments": {"b": 2, "a": 2}, "name": "add"}</tool_call>',
        ),
        ("<function=add> <parameter=a>\n2\n</parameter>", "<function=add><parameter=a>2</parameter>"),
        (
            '[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b"}]',
            '[TOOL_CALLS][{"arguments":{},"name":"a"},{"name":"b"}]',
        ),
        (r"#include <functional> and then \boxed{4}", "4"),
        ("<function f at 0x1>. So the total is 42.", "42"),
        (r"See [function notes]. It is \boxed{4}", "4"),
        (r"`<function>` and <tool> in XML, [tool call] or <tool_caller>: \boxed{4}", "4"),
    ],
)
def test_answers_that_say_the_same_are_equal(one: str, other: str) -> None:
    assert final_answer(one) == final_answer(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "-7"),
        ("yes", "no"),
        ("A", "B"),
        ("1.5", "15"),
        ('{"a": 1}', '{"a": 2}'),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>',
            '<tool_call>{"name": "sub", "arguments": {"a": 2, "b": 2}}</tool_call>',
        ),
        ('<tool_call>{"cmd": "rm a b"}</tool_call>', '<tool_call>{"cmd": "rm ab"}</tool_call>'),
        ('[TOOL_CALLS]["rm a b"]', '[TOOL_CALLS]["rm ab"]'),
        ("<function=run><parameter=cmd>rm a b</parameter>", "<function=run><parameter=cmd>rm ab</parameter>"),
        *(
            (f'I add: {mark}{{"a": 1}}', f'I add: {mark}{{"b": 1}}')
            for mark in (
                "<tool_call>",
                "<tool_calls>",
                "<|tool_call|>",
                "<|tool_call>",
                "<|tool_calls_section_begin|>",
                "<minimax:tool_call>",
                "<longcat_tool_call>",
                "<start_function_call>",
                "<function_calls>",
                "<function=add>",
                '<function name="add">',
                "<TOOLCALL>",
                "[TOOL_CALLS]",
                "<|python_tag|>",
                "<|action_start|>",
                "<｜tool▁calls▁begin｜>",
                "<｜tool_call_begin｜>",
                "<｜DSML｜function_calls>",
            )
        ),
    ],
)
def test_answers_that_differ_stay_apart(one: str, other: str) -> None:
    assert final_answer(one) != final_answer(other)


@pytest.mark.parametrize("text", ["", "  \n", "Once there was a lighthouse keeper who had a dog and a boat"])
def test_text_with_nothing_to_compare_has_no_final_answer(text: str) -> None:
    assert final_answer(text) is None


def test_last_complete_box_counts() -> None:
    assert boxed(r"\boxed{1} then \boxed{{2}} then \boxed{3") == "{2}"
    assert boxed("no box {4}") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"\boxed{1}, no: 3 + 4 = 7 so \boxed{ {7} } for 2", " {7} "),
        (r"3 + 4 = 1,007.5 in \boxed{", "1,007.5"),
        ("It is 3, not 4.", "4"),
        ('{"a": 12}', '{"a": 12}'),
        ('I add 2: <tool_call>{"a": 2}</tool_call>', '<tool_call>{"a": 2}</tool_call>'),
        ('So 2: <｜tool▁call▁begin｜>{"a": 2}', '<｜tool▁call▁begin｜>{"a": 2}'),
        ("<function f at 0x1>. So the total is 42.", "42"),
        ("Sports", "Sports"),
        ("", ""),
    ],
)
def test_final_answer_stands_where_its_span_says(text: str, said: str) -> None:
    assert text[slice(*final_span(text))] == said


def test_an_answer_that_is_a_choice_is_all_final() -> None:
    text = "grade 3, urgent"
    assert text[slice(*final_span(text, (text, "grade 3, routine")))] == text


@pytest.mark.parametrize(
    ("tokens", "span", "value"),
    [
        (["so ", "12", "3", " then"], (3, 6), math.sqrt(0.5 * 0.25)),
        (["so ", "12", "3", " then"], (5, 6), 0.25),
        (["so ", "123 the", "n"], (3, 6), 0.5),
        (["", "so", "", " 1"], (3, 4), 0.1),
        (["so 1"], (0, 4), 0.9),
    ],
)
def test_final_confidence_is_of_the_tokens_that_the_span_touches(
    tokens: list[str], span: tuple[int, int], value: float
) -> None:
    sure = (0.9, 0.5, 0.25, 0.1)[: len(tokens)]
    given = Generation("".join(tokens), tuple(range(len(tokens))), "stop", tuple(map(math.log, sure)))

    def decode(ids: Sequence[int]) -> str:
        return "".join(tokens[index] for index in ids)

    assert final_confidence(given, decode, span) == pytest.approx(value)
    assert final_confidence(replace(given, logprobs=()), decode, span) is None
    ended = replace(given, token_ids=(*given.token_ids, 99), logprobs=(*given.logprobs, -5.0))
    told = final_confidence(ended, lambda ids: decode([i for i in ids if i < 99]), span)
    assert told == pytest.approx(value)


def test_final_confidence_where_nothing_is_said() -> None:
    at_end = Generation("so", (1,), "stop", (math.log(0.9),))
    assert final_confidence(at_end, lambda ids: "so"[: 2 * len(ids)], (2, 2)) == pytest.approx(0.9)
    assert final_confidence(Generation("", (1,), "stop", (0.0,)), lambda ids: "", (0, 0)) == 0.0
    assert final_confidence(Generation("", (), "length"), lambda ids: "", (0, 0)) == 0.0


def test_final_confidence_of_a_text_that_its_tokens_do_not_spell_is_that_of_all() -> None:
    given = Generation("so 1", (0, 1), "stop", (math.log(0.9), math.log(0.4)))
    assert final_confidence(given, lambda ids: "so  1"[: 4 * len(ids)], (3, 4)) == pytest.approx(0.6)
    stopped = replace(given, text="so")
    assert final_confidence(stopped, lambda ids: "so 1"[: 2 * len(ids)], (0, 2)) == pytest.approx(0.9)


async def test_consistency_is_the_share_of_the_majority() -> None:
    pool = [answer("12"), answer("It is 12"), answer("12.0"), answer("7")]
    scores = await Consistency().score(PROMPT, [answer("= 12"), answer("7"), answer("9"), answer("")], pool)
    assert scores == [0.75, 0.0, 0.0, 0.0]


async def test_consistency_gives_each_leader_of_a_tie_its_share() -> None:
    pool = [answer("1"), answer("2"), answer("2"), answer("1")]
    assert await Consistency().score(PROMPT, [answer("1"), answer("2")], pool) == [0.5, 0.5]


async def test_cut_off_answers_neither_vote_nor_score() -> None:
    pool = [answer("5", cut=True), answer("5", cut=True), answer("8"), answer("8")]
    assert await Consistency().score(PROMPT, [answer("8"), answer("8", cut=True)], pool) == [1.0, 0.0]


@pytest.mark.parametrize("pool", [[], [answer("3")], [answer(""), answer("4", cut=True)]])
async def test_consistency_does_not_apply_where_nobody_can_agree(pool: list) -> None:
    assert await Consistency().score(PROMPT, [answer("3")], pool) == [None]


async def test_one_vote_among_several_rollouts_agrees_with_nothing() -> None:
    pool = [answer("3"), answer(""), answer("4", cut=True)]
    assert await Consistency().score(PROMPT, [answer("3"), answer("4")], pool) == [0.0, 0.0]


async def test_confidence_is_the_geometric_mean_probability() -> None:
    sure, unsure = answer("a", logprobs=(0.0, 0.0)), answer("b", logprobs=(math.log(0.5), math.log(0.125)))
    assert await Confidence().score(PROMPT, [sure, unsure], []) == [1.0, pytest.approx(0.25)]


async def test_confidence_of_nothing_is_zero_and_without_logprobs_does_not_apply() -> None:
    scores = await Confidence().score(PROMPT, [answer(" ", logprobs=(0.0,)), answer("x")], [])
    assert scores == [0.0, None]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        ({"json_schema": SCHEMA}, '{"n": 3}', '{"n": "three"}'),
        ({"json_schema": json.dumps(SCHEMA)}, '{"n": 3}', "n = 3"),
        ({"json_schema": {"enum": ["\ud800"]}}, '"\\ud800"', '"a"'),  # text of clients may hold surrogates
        ({"json_object": True}, "{}", "[]"),
        ({"regex": r"\d{3}"}, " 123\n", "1234"),
        ({"boxed": True}, r"so \boxed{4}", "so 4"),
    ],
)
async def test_format_holds_the_rules_of_the_request(rules: dict, good: str, bad: str) -> None:
    prompt = rendered(ENGINE, rules=rules)
    assert await Format().score(prompt, [answer(good), answer(bad)], []) == [1.0, 0.0]


async def test_format_is_the_share_of_rules_kept_and_needs_rules() -> None:
    prompt = rendered(ENGINE, rules={"json_object": True, "boxed": True})
    assert await Format().score(prompt, [answer("{}")], []) == [0.5]
    assert await Format().score(PROMPT, [answer("{}")], []) == [None]


DRAFT_7 = "http://json-schema.org/draft-07/schema#"
SLOW = {"type": "string", "pattern": r"^(a|aa)+$"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        "not json",
        7,
        {"patternProperties": {"a": {}}},
        {"pattern": "a{99999999999}"},
        {"allOf": [SLOW | {"$schema": DRAFT_7}]},
        {"enum": ["a" * RULE_CHARS]},
    ],
)
async def test_format_skips_schemas_it_cannot_check(schema: object) -> None:
    prompt = rendered(ENGINE, rules={"json_schema": schema})
    assert await Format().score(prompt, [answer("{}")], []) == [None]


@pytest.mark.parametrize(
    "rules",
    [
        {"regex": r"(a+)+b"},
        {"json_schema": SLOW},
        {"json_schema": {"$ref": "http://127.0.0.1:9/schema.json"}},
        {"json_schema": {"$schema": DRAFT_7, "$ref": "#/definitions/a", "definitions": {"a": SLOW}}},
    ],
)
async def test_hostile_rules_cost_no_more_than_their_reward(rules: dict) -> None:
    prompt = rendered(ENGINE, rules=rules)
    hostile = answer("a" * 40 + "!") if "regex" in rules else answer(json.dumps("a" * 40 + "!"))
    assert await Format().score(prompt, [hostile], []) == [0.0]


@pytest.mark.parametrize("pattern", ["(", "(" * 500 + "a" + ")*" * 500, "a" * (RULE_CHARS + 1)])
async def test_format_skips_a_regex_of_another_dialect_and_one_that_takes_too_long_to_read(
    pattern: str,
) -> None:
    assert await Format().score(rendered(ENGINE, rules={"regex": pattern}), [answer("a")], []) == [None]


def doubling(depth: int) -> dict:
    """Return a schema whose check doubles with each level, and which everything passes."""
    levels = {f"l{n}": {"allOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 2} for n in range(depth)}
    return {"$defs": levels | {f"l{depth}": {"minLength": 1}}, "$ref": "#/$defs/l0"}


async def test_schema_that_takes_too_long_ends_and_does_not_hold_up_the_loop() -> None:
    prompt, turns = rendered(ENGINE, rules={"json_schema": doubling(60)}), 0
    checking = asyncio.create_task(are_in_form(prompt, [answer('"a"')] * 3))
    while not checking.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await checking, turns > 10) == ([False] * 3, True)
    assert await are_in_form(rendered(ENGINE, rules={"json_schema": doubling(3)}), [answer('"a"')]) == [True]


def test_weights_are_read_in_order_and_zeros_left_out() -> None:
    assert parse_weights(" consistency=1, format = 0.25,confidence=0") == {"consistency": 1.0, "format": 0.25}


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("luck=1", "luck"),
        ("format=1,format=2", "twice"),
        ("format", "'format'"),
        ("format=much", "format=much"),
        ("format=-1", "format=-1"),
        ("format=nan", "format=nan"),
        ("format=0", "above 0"),
        ("", "above 0"),
    ],
)
def test_wrong_reward_settings_name_their_part(setting: str, part: str) -> None:
    with pytest.raises(RewardSettingsError, match=part):
        parse_weights(setting)


async def test_scorer_weighs_only_the_signals_that_apply() -> None:
    scorer = Scorer.of("consistency=3,confidence=1,format=6")
    given = answer("12", logprobs=(math.log(0.5),))
    (scored,) = await scorer.score(PROMPT, [given], [answer("12"), answer("12")])
    assert scored.signals == {"consistency": 1.0, "confidence": pytest.approx(0.5)}
    assert scored.reward == pytest.approx((3 + 0.5) / 4)
    (alone,) = await scorer.score(PROMPT, [answer("12")], [])
    assert (alone.reward, alone.signals) == (0.0, {})


class Some:
    """A signal that has nothing to say of short answers."""

    name = "some"

    async def score(self, prompt, answers, pool) -> list[float | None]:
        return [0.8 if len(one.text) > 3 else None for one in answers]


async def test_answer_of_which_a_signal_says_nothing_does_not_beat_one_that_it_scored() -> None:
    scorer = Scorer([(Some(), 0.9), (Confidence(), 0.1)])
    known, unknown = answer("12345", logprobs=(math.log(0.5),)), answer("12", logprobs=(0.0,))
    first, second = await scorer.score(PROMPT, [known, unknown], [])
    assert first.reward == pytest.approx(0.9 * 0.8 + 0.1 * 0.5)
    assert second.reward == pytest.approx(0.1)
    (alone,) = await scorer.score(PROMPT, [unknown], [])
    assert alone.signals == {"confidence": 1.0}


async def test_choices_are_votes_as_they_stand() -> None:
    prompt = replace(PROMPT, decoding=Decoding(8, choices=("grade 3, urgent", "grade 3, routine")))
    urgent, routine = answer("grade 3, urgent"), answer("grade 3, routine")
    pool = [urgent, urgent, urgent, routine]
    assert await Consistency().score(prompt, [urgent, routine], pool) == [0.75, 0.0]
