"""The questions of a demo.

Owns reading JSONL files and splitting them into the first day and questions held out for the
second. Knows nothing of how answers are scored.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from cli.failure import USAGE, CommandError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
"""In a checkout and installed alike: the folder is packaged beside `cli`, as a namespace without modules."""


@dataclass(frozen=True)
class Item:
    """A question and its answer; only the question is ever sent."""

    question: str
    answer: str | float
    choices: tuple[str, ...] = ()
    """The answers that the request allows; () when it allows any."""

    def asked(self, instruction: str) -> str:
        """Return what a user says who asks the question, with an instruction after it; "": without."""
        return f"{self.question}\n\n{instruction}" if instruction else self.question


def read_items(path: Path) -> list[Item]:
    """Return the items of a JSONL file with `question` and `answer` on each line, and `choices` if need be.

    Raises:
        CommandError: exit code 2, naming the file and the line.
    """
    items = []
    for number, row in _rows(path):
        answer = row.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise CommandError(f"{path}, line {number}: no `answer` that is text or a number", None, USAGE)
        choices = row.get("choices", [])
        if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            raise CommandError(f"{path}, line {number}: `choices` is no list of texts", None, USAGE)
        items.append(Item(_question(path, number, row), answer, tuple(choices)))
    return items


def read_prompts(path: Path) -> list[str]:
    """Return the `question` of each line of a JSONL file."""
    return [_question(path, number, row) for number, row in _rows(path)]


def split(items: list[Item], first: int, second: int, seed: int) -> tuple[list[Item], list[Item], list[Item]]:
    """Return `first` items, `second` other ones and those that are left, drawn with a seed.

    No question is in two of them.

    Raises:
        CommandError: exit code 2 when there are too few different questions.
    """
    different = list({item.question: item for item in items}.values())
    if len(different) < first + second:
        raise CommandError(
            f"{len(different)} different questions, but --limit {first} and --held-out {second} need"
            f" {first + second}",
            "ask for fewer, or give a longer file with --data",
            USAGE,
        )
    random.Random(seed).shuffle(different)
    return different[:first], different[first : first + second], different[first + second :]


def _rows(path: Path) -> list[tuple[int, dict[str, object]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}", "name a JSONL file with --data", USAGE) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{path}, line {number}: not JSON ({error})", None, USAGE) from error
        if not isinstance(row, dict):
            raise CommandError(f"{path}, line {number}: not a JSON object", None, USAGE)
        rows.append((number, row))
    return rows


def _question(path: Path, number: int, row: dict[str, object]) -> str:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise CommandError(f"{path}, line {number}: no `question`", None, USAGE)
    return question
