"""What a person asked, out of a prompt as the chat template rendered it.

Owns how the template's marks around the last message of a user are found. Knows nothing of any one template.
"""

from itertools import takewhile

from model.engine import Engine

_ONE, _OTHER = "a question", "Something else?"


class Questions:
    """Finds the last user message of rendered prompts; where there is none, the text stays as it is."""

    def __init__(self, engine: Engine) -> None:
        first = _rendered(engine, _ONE)
        later = _rendered(engine, _OTHER, _ONE)
        before, _, self._after = first.rpartition(_ONE)
        # What stands before a user's message wherever it comes in a conversation.
        backwards = zip(before[::-1], later.rpartition(_ONE)[0][::-1], strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], backwards)))
        self._before = before[len(before) - shared :]

    def of(self, prompt: str) -> str:
        """Return what was asked last in a rendered prompt."""
        end = prompt.rfind(self._after) if self._after else -1
        text = prompt[:end] if end >= 0 else prompt
        return (text.rpartition(self._before)[2] if self._before else text).strip()


def _rendered(engine: Engine, *questions: str) -> str:
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question}!"}]
    return engine.decode(engine.render(messages[:-1]))
