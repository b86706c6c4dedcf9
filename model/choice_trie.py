"""The grammar of a fixed set of answers.

Owns which token may follow, so that a decoded answer is one of the choices. Knows tokens only.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

MOST_TEXT = 4_096
"""Characters of all choices, the most of which a trie is made: it keeps every beginning of each, and so the
square of their length."""


class ChoiceTrie:
    """Tokens that continue a partial answer towards one of the choices.

    Args:
        choices: tokens of each choice; none for the empty answer.
        end: token that ends an answer; it may follow a whole choice.
    """

    def __init__(self, choices: Iterable[Sequence[int]], end: int) -> None:
        following: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self.answers = tuple((*choice, end) for choice in choices)
        """Tokens of each choice and its end."""
        for tokens in self.answers:
            for at, token in enumerate(tokens):
                following[tokens[:at]].add(token)
        if not following:
            raise ValueError("there are no choices")
        self._following = {taken: sorted(tokens) for taken, tokens in following.items()}

    def allowed(self, taken: Sequence[int]) -> list[int]:
        """Return the tokens that may come after `taken`; none after an end."""
        return self._following.get(tuple(taken), [])

    @property
    def beginnings(self) -> list[tuple[int, ...]]:
        """Return the partial answers after which a token may come."""
        return list(self._following)

    @property
    def branches(self) -> list[tuple[int, ...]]:
        """Return those after which it may be one of several."""
        return [taken for taken, tokens in self._following.items() if len(tokens) > 1]

    def log_probabilities(self, drawn: Mapping[tuple[int, ...], Sequence[float]]) -> list[float]:
        """Return the log-probability of each choice.

        Args:
            drawn: Log-probabilities of the tokens that are allowed, in their order, after some of the
                beginnings; tokens after others cost nothing.
        """
        return [
            sum(
                drawn[tokens[:at]][self.allowed(tokens[:at]).index(token)]
                for at, token in enumerate(tokens)
                if tokens[:at] in drawn
            )
            for tokens in self.answers
        ]
