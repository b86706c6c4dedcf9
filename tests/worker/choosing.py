"""An engine that chooses, for tests of labels and outcomes."""

from collections.abc import Sequence

import torch

from model.engine import Label
from tests.scripted_engine import ScriptedEngine

CHOICES = ("fruit", "tool", "town", "bird")


class ChoosingEngine(ScriptedEngine):
    """Gives each choice a probability by a table of prompts; latents are as `ScriptedEngine` takes them.

    A prompt that is not in the table is answered as the scripted engine does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.believes: dict[tuple[int, ...], Sequence[float]] = {}
        """Probability of each of `CHOICES` under no latent, by prompt."""

    def _log_likelihood(
        self, token_ids: Sequence[int], latent: torch.Tensor | None, label: Label
    ) -> torch.Tensor:
        known = self.believes.get(tuple(token_ids))
        learning = latent is not None and latent.requires_grad
        if known is None or not label.choices or learning:
            return super()._log_likelihood(token_ids, latent, label)
        places = [
            [self.answer_tokens(choice) for choice in CHOICES].index(answer) for answer in label.answers
        ]
        return torch.tensor([known[place] for place in places]).log() @ torch.tensor(label.probabilities)
