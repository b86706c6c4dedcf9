"""An engine that chooses, for tests of labels and outcomes."""

from collections.abc import Sequence

import torch

from model.engine import Label, SteeredPrompt
from model.scripted_engine import ScriptedEngine

CHOICES = ("fruit", "tool", "town", "bird")


class ChoosingEngine(ScriptedEngine):
    """Gives each choice a probability by a table of prompts; latents are as `ScriptedEngine` takes them.

    A prompt that is not in the table is answered as the scripted engine does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.believes: dict[tuple[int, ...], Sequence[float]] = {}
        """Probability of each of `CHOICES` under no latent, by prompt."""

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        found = await super().log_likelihood(prompts, labels)
        for at, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
            known = self.believes.get(prompt.token_ids)
            if known is not None and label.choices:
                places = [
                    [self.answer_tokens(choice) for choice in CHOICES].index(answer)
                    for answer in label.answers
                ]
                logs = torch.tensor([known[place] for place in places]).log()
                found[at] = (logs * torch.tensor(label.probabilities)).sum()
        return found
