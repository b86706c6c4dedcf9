"""The likelihood of one answer from the logits at its tokens.

Owns what a free answer is worth and what one held to choices is. Knows nothing of models.
"""

from dataclasses import dataclass

import torch

from model.choice_trie import ChoiceTrie


@dataclass(frozen=True)
class Target:
    """An answer whose likelihood is asked for."""

    tokens: tuple[int, ...]
    """Not empty."""
    trie: ChoiceTrie | None = None
    """The choices that a grammar holds it to."""

    def __post_init__(self) -> None:
        if self.trie is not None:
            for at, token in enumerate(self.tokens):
                if token not in self.trie.allowed(self.tokens[:at]):
                    raise ValueError(f"token {at} of the answer belongs to none of its choices")

    def value(self, logits: torch.Tensor) -> torch.Tensor:
        """Return a scalar for logits, (tokens, V).

        Free answers: the mean log-probability per token. Held to choices: the log-probability of the whole
        answer when each token is drawn among those that the grammar allows, as `model/decoder.py` draws.
        """
        if self.trie is None:
            return -torch.nn.functional.cross_entropy(logits, torch.tensor(self.tokens, device=logits.device))
        steps = []
        for at, token in enumerate(self.tokens):
            allowed = self.trie.allowed(self.tokens[:at])
            steps.append(logits[at, allowed].log_softmax(dim=0)[allowed.index(token)])
        return torch.stack(steps).sum()
