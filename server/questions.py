"""What a person asked, out of a prompt as the chat template rendered it.

Owns how the template's marks around the last message of a user are found. Knows nothing of any one template.
"""

from collections.abc import Sequence
from itertools import takewhile

from model.engine import Engine, PlacementError

_ONE, _OTHER = "a question", "Something else?"


class Questions:
    """Finds the last user message of rendered prompts; where there is none, the text stays as it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        try:
            first, later = _rendered(engine, _ONE), _rendered(engine, _OTHER, _ONE)
        except PlacementError:  # there is no chat template
            first = later = ""
        before, _, self._after = first.rpartition(_ONE)
        # What stands before a user's message wherever it comes in a conversation.
        backwards = zip(before[::-1], later.rpartition(_ONE)[0][::-1], strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], backwards)))
        self._before = before[len(before) - shared :]

    def of(self, prompt: str, token_ids: Sequence[int]) -> str:
        """Return what was asked last in a rendered prompt.

        Args:
            prompt: Its text, which may have its special tokens spelt out.
            token_ids: Of it; (): none are kept, as where the text is redacted.
        """
        if token_ids:
            prompt = self._engine.decode(token_ids)
        end = prompt.rfind(self._after) if self._after else -1
        text = prompt[:end] if end >= 0 else prompt
        return (text.rpartition(self._before)[2] if self._before else text).strip()


def _rendered(engine: Engine, *questions: str) -> str:
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": f"{question}!"}]
    return engine.decode(engine.render(messages[:-1]))
