"""What is compared: bare vLLM and the efforts of the steered server.

Owns names, what a request of each arm carries, and the order of rounds.
"""

from collections.abc import Sequence
from typing import Any

from bench.options import names
from cli.failure import USAGE, CommandError

BARE = "bare"
EFFORTS = ("none", "low", "medium", "high")


def parse_arms(text: str) -> tuple[str, ...]:
    """Return the arms named in `text`, `bare` among them.

    Raises:
        CommandError: exit code 2.
    """
    arms = names(text, "--arms", (BARE, *EFFORTS))
    if BARE not in arms:
        raise CommandError("--arms: without bare there is nothing to compare with", None, USAGE)
    return arms


def order(arms: Sequence[str], turn: int) -> tuple[str, ...]:
    """Return the arms in the order of one round: every arm goes first, second, … in turn."""
    at = turn % len(arms)
    return (*arms[at:], *arms[:at])


def body(arm: str) -> dict[str, Any]:
    """Return what a request of this arm carries beside OpenAI's fields.

    `ignore_eos` makes all final answers equally long; `store` false keeps memory as it was.
    """
    if arm == BARE:
        return {"ignore_eos": True}
    return {"ignore_eos": True, "latent": {"effort": arm, "store": False}}


def questions(texts: Sequence[str], label: int, count: int) -> list[str]:
    """Return `count` prompts that no earlier label has had.

    The number stands in front, so that the prefix cache of neither server holds more than the chat
    template's own opening; it has as many digits everywhere, so that prompts of all arms are equally long.
    """
    return [f"Note {label:05d}-{at:03d}. {texts[at % len(texts)]}" for at in range(count)]
