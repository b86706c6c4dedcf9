"""Latents stand before what closes the last message, whatever the chat template looks like."""

import copy
from typing import Any

import pytest
from tokenizers import AddedToken

from model.engine import PlacementError
from model.placement import Placement, render_chat
from model.transformers_engine import TransformersEngine

PLAIN_TEXT = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### answer:\n{% endif %}"
)
BRACKETS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def tokenizer(engine: TransformersEngine) -> Any:
    return copy.deepcopy(engine.model.tokenizer)


def test_chatml_latents_come_before_the_end_of_the_turn(tokenizer: Any) -> None:
    placement = Placement.of(tokenizer, "user_turn_end")
    for text in ("Hi", "What is it?", "Count to 12", "Say (this)\n", "naïve ✓"):
        chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
        tokens = render_chat(tokenizer, chat)
        at = placement.position(tokens)
        assert tokenizer.decode(tokens[:at]).endswith(f"user\n{text}")
        assert tokenizer.decode(tokens[at:]) == "<|im_end|>\n<|im_start|>assistant\n"


def test_after_header_is_the_end_of_the_prompt(tokenizer: Any) -> None:
    tokens = render_chat(tokenizer, [{"role": "user", "content": "Hi"}])
    assert Placement.of(tokenizer, "after_header").position(tokens) == len(tokens)


@pytest.mark.parametrize("length", [1, 4, 16])
def test_the_neutral_start_is_newlines_in_a_message_and_the_header_behind_it(
    tokenizer: Any, length: int
) -> None:
    within = Placement.of(tokenizer, "user_turn_end").neutral_tokens(length)
    behind = Placement.of(tokenizer, "after_header").neutral_tokens(length)
    assert tokenizer.decode(within) == "\n" * length
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert list(behind) == (header * length)[-length:]


@pytest.mark.parametrize("otherwise", ["", "{% else %}{{ eos_token }}"], ids=["nothing", "end token"])
def test_a_header_is_what_the_generation_prompt_brings(tokenizer: Any, otherwise: str) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>answer:" + otherwise + "{% endif %}"
    )
    behind = Placement.of(tokenizer, "after_header").neutral_tokens(8)
    assert tokenizer.decode(behind).endswith("<|im_start|>answer:" * 2)


@pytest.mark.parametrize(
    "template",
    [BRACKETS, "{% if not add_generation_prompt %}{{ raise_exception('ask') }}{% endif %}" + PLAIN_TEXT],
    ids=["brackets", "refuses"],
)
def test_a_template_without_a_header_starts_from_newlines(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    assert tokenizer.decode(Placement.of(tokenizer, "after_header").neutral_tokens(3)) == "\n\n\n"
    tokenizer.chat_template = None
    assert tokenizer.decode(Placement.of(tokenizer, "after_header").neutral_tokens(3)) == "\n\n\n"


@pytest.mark.parametrize(
    ("template", "closing"), [(PLAIN_TEXT, "### answer:\n"), (BRACKETS, "[/INST]")], ids=["plain", "brackets"]
)
def test_other_templates_have_their_place(tokenizer: Any, template: str, closing: str) -> None:
    tokenizer.chat_template = template
    placement = Placement.of(tokenizer, "user_turn_end")
    for text in ("Hi", "What is it?", "Count to 12", "Say (this)"):
        tokens = render_chat(tokenizer, [{"role": "user", "content": text}])
        at = placement.position(tokens)
        # A merge may pull the first closing mark into the message; never the other way round.
        assert text in tokenizer.decode(tokens[:at])
        assert closing.lstrip("[#").strip() in tokenizer.decode(tokens[at:])


def test_prompts_of_no_template_have_no_place(tokenizer: Any) -> None:
    placement = Placement.of(tokenizer, "user_turn_end")
    for tokens in (tuple(tokenizer.encode("Once upon a time")), placement.suffix, ()):
        with pytest.raises(PlacementError):
            placement.position(tokens)


def test_a_tokenizer_without_template_has_no_place(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    placement = Placement.of(tokenizer, "user_turn_end")
    with pytest.raises(PlacementError):
        placement.position((1, 2, 3))
    with pytest.raises(PlacementError):
        render_chat(tokenizer, [{"role": "user", "content": "Hi"}])


ENDED = "{% for message in messages %}<start>{{ message['content'] }}<|end|>\n{% endfor %}"
CLOSED = "{% for message in messages %}<start>{{ message['content'] }}<|im_start|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, "<|im_end|>"),
        (CLOSED, "<|im_start|>"),
        (ENDED, "<|end|>"),
        (PLAIN_TEXT, "<|im_end|>"),
        (BRACKETS, "<|im_end|>"),
    ],
    ids=["own", "another token", "an added one", "plain text", "brackets"],
)
def test_an_answer_ends_as_the_template_closes_what_the_model_has_said(
    tokenizer: Any, template: str | None, end: str
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])  # none of the named special tokens
    assert tokenizer.convert_ids_to_tokens(Placement.of(tokenizer, "user_turn_end").end) == end
