r"""Whether an answer is right, for the scorer alone.

Owns the rule: a label must be named and no other; a number must be the one in the last `\boxed{}` where
the request asks for a box, the last number otherwise. Only here are expected answers read.
"""

from collections.abc import Sequence

from cli.demonstration.score import Scorer as Labels
from cli.demonstration.stream import Item
from model.final_answer import boxed


class Scorer:
    """Scores answers to the questions of one file."""

    def __init__(self, items: Sequence[Item], *, box: bool) -> None:
        self._labels, self._box = Labels(item.answer for item in items), box

    def correct(self, text: str, item: Item) -> bool:
        """Return whether `text` gives the item's answer."""
        if self._box:
            found = boxed(text)
            return found is not None and self._labels.correct(found, item.answer)
        return self._labels.correct(text, item.answer)
