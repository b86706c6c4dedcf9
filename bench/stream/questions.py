r"""The questions of a run, dealt out, and whether an answer is right.

Owns reading a plan's files, which questions are held out, and the rule that scores them: a label must be
named and no other; a number must be the one in the last `\boxed{}` where the request asks for a box, the last
number otherwise. Only here are expected answers read. Knows nothing of what is done with questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.demonstration.score import Scorer as Labels
from cli.demonstration.score import number_of
from cli.demonstration.stream import Item, read_items
from cli.failure import USAGE, CommandError
from model.final_answer import boxed

if TYPE_CHECKING:  # answers are scored on machines with torch and little else (`scripts/gpu.py`)
    from bench.stream.plan import Plan

STREAM = "stream"
"""Name of the questions held out of the stream's own file; others have the name of theirs."""


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


@dataclass(frozen=True)
class Questions:
    """Held-out questions of one file, with the rule that scores them."""

    name: str
    items: Sequence[Item]
    scorer: Scorer


class Files:
    """The files of a plan, read once.

    Raises:
        CommandError: exit code 2, a file cannot be read, two would have one name in the results, or choices
            are asked for where answers are numbers.
    """

    def __init__(self, plan: "Plan") -> None:
        self._plan, self._box = plan, "\\boxed" in plan.instruction + plan.system
        self._items = self._read(Path(plan.data))
        self._also: dict[str, list[Item]] = {}
        for path in map(Path, plan.also):
            if path.stem == STREAM or path.stem in self._also:
                raise CommandError(
                    f"--also {path}: the name {path.stem!r} is taken", "give the file another one", USAGE
                )
            self._also[path.stem] = list({item.question: item for item in self._read(path)}.values())

    @property
    def held(self) -> bool:
        """Whether any answer is held to choices."""
        return any(item.choices for items in (self._items, *self._also.values()) for item in items)

    def _read(self, path: Path) -> list[Item]:
        items = read_items(path)
        if not self._plan.choices:
            return items
        labels = tuple(dict.fromkeys(str(item.answer) for item in items if not item.choices))
        if any(number_of(label) is not None for label in labels):
            raise CommandError(f"--choices: answers of {path} are numbers, not labels", "leave it out", USAGE)
        return [item if item.choices else replace(item, choices=labels) for item in items]

    def deal(self, seed: int) -> tuple[list[Questions], list[list[Item]], Scorer]:
        """Return the held-out questions, those of each day, and the scorer of the stream's file.

        Raises:
            CommandError: exit code 2, there are too few questions.
        """
        scorer = Scorer(self._items, box=self._box)
        held_out, days = self._plan.parts(self._items, seed)
        found = [Questions(STREAM, held_out, scorer)]
        for name, items in self._also.items():
            found.append(Questions(name, items[: self._plan.held_out], Scorer(items, box=self._box)))
        return found, days, scorer
