"""Whether a reply is right.

Owns the rule, the same for plain and steered replies: a number must be the last number of the
reply; a label must be named, and no other label of the same file. Runs here, never in the server.
"""

import math
import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Scorer:
    """Scores replies against the answers of one file."""

    def __init__(self, answers: Iterable[str | float]) -> None:
        labels = {label for answer in answers if number_of(label := str(answer).strip()) is None}
        longest_first = sorted(labels, key=lambda label: (-len(label), label))
        choice = "|".join(re.escape(label) for label in longest_first)
        self._labels = re.compile(rf"(?<!\w)(?:{choice})(?!\w)", re.IGNORECASE) if choice else None

    def correct(self, reply: str, answer: str | float) -> bool:
        """Return whether `reply` gives `answer`."""
        expected = number_of(str(answer))
        if expected is not None:
            numbers = NUMBER.findall(reply)
            found = number_of(numbers[-1]) if numbers else None
            return found is not None and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-6)
        named = {label.casefold() for label in self._labels.findall(reply)} if self._labels else set()
        return named == {str(answer).strip().casefold()}


def number_of(text: str) -> float | None:
    """Return the number that `text` is, None when it is not one."""
    return float(text.replace(",", "")) if NUMBER.fullmatch(text.strip()) else None


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences (normal approximation)."""
    n = len(differences)
    mean = sum(differences) / n
    if n < 2:
        return mean, mean
    variance = sum((value - mean) ** 2 for value in differences) / (n - 1)
    half = 1.96 * math.sqrt(variance / n)
    return mean - half, mean + half
