"""What one run of the stream does.

Owns the options that decide results, and which question belongs to which day. Knows nothing of models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from bench.options import settings_at_default
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError


@dataclass(frozen=True)
class Plan:
    """Everything that a result depends on, but for the machine and the code."""

    model: str
    data: str
    """JSONL file of the stream."""
    also: tuple[str, ...] = ()
    """JSONL files that no day draws from: generalisation."""
    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """What decodes; `server`: a running one, whose settings are its own."""
    day: int = 32
    """Questions per day."""
    held_out: int = 64
    """Questions that no day holds, of each file."""
    nights: int = 3
    max_tokens: int = 64
    """Answer budget."""
    instruction: str = ""
    """Follows each question."""
    system: str = ""
    """System prompt; empty: the chat template's own."""
    choices: bool = False
    """Whether answers are held to the labels of their file, where a question has no choices of its own."""
    skew: str = ""
    """LABEL=SHARE: a class and its share of each day; empty: days are drawn as they come."""
    day_effort: Literal["low", "medium", "high"] = "low"
    """Effort of the days' requests; at `low` every request is explored afterwards."""
    samples: int = 8
    """Answers of the arms `majority` and `best-of`."""
    refined: int = 16
    """Held-out questions of the arms that refine, which cost most."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the server that results depend on, by name."""
    arms: tuple[str, ...] = ()
    """Arms that answer. One that came later would meet a memory of later nights."""
    unlike: str = ""
    """JSONL file of prompts unlike the stream, asked without instruction and system prompt."""
    digests: tuple[str, ...] = ()
    """Of the files: data, also, unlike."""

    @property
    def overrides(self) -> dict[str, str]:
        """The server's settings as they are given, those that are set to nothing left out."""
        return {name: value for name, value in self.settings.items() if value != "None"}

    def parts(self, items: Sequence[Item], seed: int) -> tuple[list[Item], list[list[Item]]]:
        """Return the held-out questions and those of each day, no question twice.

        The held-out ones are drawn as they come, so that they are the same whatever the days' skew.

        Raises:
            CommandError: exit code 2, there are too few questions.
        """
        different = list({item.question: item for item in items}.values())
        random.Random(seed).shuffle(different)
        held_out, rest = different[: self.held_out], different[self.held_out :]
        if not self.skew:
            days = [rest[n * self.day : (n + 1) * self.day] for n in range(self.nights)]
            self._enough(len(different), self.held_out + self.nights * self.day, "different questions")
            return held_out, days
        label, share = skewed(self.skew)
        alike = round(share * self.day)
        mine = [item for item in rest if str(item.answer) == label]
        others = [item for item in rest if str(item.answer) != label]
        self._enough(len(mine), self.nights * alike, f"questions of {label} that are not held out")
        self._enough(len(others), self.nights * (self.day - alike), "others that are not held out")
        days = []
        for n in range(self.nights):
            day = mine[n * alike : (n + 1) * alike]
            day += others[n * (self.day - alike) : (n + 1) * (self.day - alike)]
            random.Random(f"{seed} {n}").shuffle(day)
            days.append(day)
        return held_out, days

    def _enough(self, there: int, needed: int, of: str) -> None:
        if there < needed:
            raise CommandError(
                f"{self.data} has {there} {of}, {needed} are needed",
                "ask for a smaller --day, --held-out or --nights",
                USAGE,
            )


def skewed(text: str) -> tuple[str, float]:
    """Return the label and the share of LABEL=SHARE.

    Raises:
        CommandError: exit code 2, it is none.
    """
    label, _, number = text.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not label or not 0 <= share <= 1:
        raise CommandError(f"--skew {text}: not LABEL=SHARE", "such as --skew Sports=0.7", USAGE)
    return label, share


def plan_at_default() -> dict[str, Any]:
    """Return every option of a plan that has a default at that, the server's settings among them."""
    found = {one.name: one.default for one in fields(Plan) if one.default is not MISSING}
    return {**found, "settings": settings_at_default()}


def plan_of(head: Mapping[str, Any]) -> Plan:
    """Return the plan of a run that this or an earlier build has begun, by its head."""
    told: dict[str, Any] = {}
    for one in fields(Plan):
        if one.name in head["settings"]:
            value = head["settings"][one.name]
            told[one.name] = tuple(value) if isinstance(value, list) else value
    return Plan(**told)
