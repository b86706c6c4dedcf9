"""How many of a night's labels are right.

Owns the count. A night decides its labels without knowing any answer; here they are compared with the answers
that are known, afterwards.
"""

from collections.abc import Callable, Iterable, Mapping

from cli.demonstration.stream import Item


def labels_right(
    labels: Iterable[tuple[str, str | None]],
    known: Mapping[str, Item],
    remembered: Callable[[str], str],
    correct: Callable[[str, Item], bool],
) -> dict[str, int]:
    """Return how many labels are of questions whose answer is known, and how many of these are right.

    Args:
        labels: id of an episode and the choice that is its label, None: its answer as it was remembered. So
            the manifest of a version has them.
        known: questions by the id of their episode.
        remembered: the answer of an episode.
        correct: whether a text is right.
    """
    kept = [(episode, choice) for episode, choice in labels if episode in known]
    right = sum(
        correct(remembered(episode) if choice is None else choice, known[episode]) for episode, choice in kept
    )
    return {"labels": len(kept), "labels_right": right}
