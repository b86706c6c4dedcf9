"""The grammar of a fixed set of answers.

Owns which token may follow, so that a decoded answer is one of the choices. Knows tokens only.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence


class ChoiceTrie:
    """Tokens that continue a partial answer towards one of the choices.

    Args:
        choices: tokens of each choice; none for the empty answer.
        end: token that ends an answer; it may follow a whole choice.
    """

    def __init__(self, choices: Iterable[Sequence[int]], end: int) -> None:
        following: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for choice in choices:
            tokens = (*choice, end)
            for at, token in enumerate(tokens):
                following[tokens[:at]].add(token)
        if not following:
            raise ValueError("there are no choices")
        self._following = {taken: sorted(tokens) for taken, tokens in following.items()}

    def allowed(self, taken: Sequence[int]) -> list[int]:
        """Return the tokens that may come after `taken`; none after an end."""
        return self._following.get(tuple(taken), [])
