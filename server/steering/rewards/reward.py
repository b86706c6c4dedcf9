"""What a reward signal promises.

Owns the protocol. Knows nothing of how signals are weighed or what their scores are used for.
"""

from collections.abc import Sequence
from typing import Protocol

from model.engine import Generation
from server.steering.prompt import RenderedPrompt


class SignalUnavailableError(Exception):
    """The signal of this name would apply, but cannot be had right now."""


class Reward(Protocol):
    """One named signal of how good an answer is, without labels."""

    @property
    def name(self) -> str:
        """Name of the signal in settings, traces and episodes."""
        ...

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return one score in [0, 1] per answer; None where the signal does not apply.

        Args:
            prompt: What was asked.
            answers: The answers to score.
            pool: The rollouts that vote: answers to the same prompt, of the unsteered model or of the latent
                that would be served without a search.

        Raises:
            SignalUnavailableError: nothing can be said of any of them; the reason was logged.
        """
        ...
