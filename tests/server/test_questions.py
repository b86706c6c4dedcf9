"""Questions are found in prompts of any template."""

from collections.abc import Sequence

import pytest

from model.engine import PlacementError
from server.questions import Questions
from tests.scripted_engine import ScriptedEngine


class Templated(ScriptedEngine):
    """Renders with another template."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self.template = template

    def text(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the rendered prompt."""
        match self.template:
            case "chatml":
                given = [] if messages[0]["role"] == "system" else [{"role": "system", "content": "Be kind."}]
                turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in [*given, *messages]]
                return "".join(turns) + "<|im_start|>assistant\n"
            case "llama":
                turns = [f"<|{m['role']}|>\n\n{m['content']}<|eot|>" for m in messages]
                return "<|begin|>" + "".join(turns) + "<|assistant|>\n\n"
            case _:
                return "".join(m["content"] for m in messages)

    def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return self.encode(self.text(messages))


@pytest.mark.parametrize("template", ["chatml", "llama", "none at all"])
def test_the_last_user_message_is_what_was_asked(template: str) -> None:
    engine = Templated(template)
    questions = Questions(engine)
    asked = {"role": "user", "content": "What is 7 + 8?\nAnswer with a number."}
    assert questions.of("spelt <|otherwise|>", engine.render([asked])) == asked["content"]
    assert questions.of(engine.text([asked]), ()) == asked["content"]
    if template != "none at all":
        system = {"role": "system", "content": "You count."}
        before = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
        assert questions.of("", engine.render([system, asked])) == asked["content"]
        assert questions.of("", engine.render([*before, asked])) == asked["content"]


def test_a_text_of_no_template_stays_as_it_is() -> None:
    assert Questions(ScriptedEngine()).of(" question 1 ", ()) == "question 1"


def test_without_a_template_texts_stay_as_they_are() -> None:
    class Untemplated(ScriptedEngine):
        def render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
            raise PlacementError("the tokenizer has no chat template")

    assert Questions(Untemplated()).of(" Once upon a time ", ()) == "Once upon a time"
