"""What one run of the stream does.

Owns the options that decide results, and which question belongs to which day. Knows nothing of models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
    engine: Literal["transformers", "vllm"] = "transformers"
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

    def parts(self, items: Sequence[Item], seed: int) -> tuple[list[Item], list[list[Item]]]:
        """Return the held-out questions and those of each day, no question twice.

        Raises:
            CommandError: exit code 2, there are too few questions.
        """
        different = list({item.question: item for item in items}.values())
        needed = self.held_out + self.nights * self.day
        if len(different) < needed:
            raise CommandError(
                f"{self.data} has {len(different)} different questions, {needed} are needed",
                "ask for a smaller --day, --held-out or --nights",
                USAGE,
            )
        random.Random(seed).shuffle(different)
        start = self.held_out
        days = [different[start + n * self.day : start + (n + 1) * self.day] for n in range(self.nights)]
        return different[:start], days
