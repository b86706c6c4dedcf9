"""What LatentSeek optimises (arXiv 2505.13308, code bigai-nlco/LatentSeek), in our own rendering.

Owns the vectors and their step: the last hidden states of an answer's first tokens, a loss that passes from
there through the output head only, and one step of Adam. Learning rate and share of the answer are the
published ones. Knows nothing of how the rest is decoded or of where rewards come from.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SHARE = 0.1
"""ρ: share of the answer's tokens whose states are optimised."""
RATE = 0.03
STEPS = 10
_TINY = 1e-8


@torch.no_grad()
def states_of(network: Any, prompt: Sequence[int], answer: Sequence[int], count: int) -> Tensor:
    """Return the last hidden states that an answer's first `count` tokens were read from, (count, d)."""
    tokens = torch.tensor([[*prompt, *answer[: count - 1]]], device=network.device)
    states: Tensor = network.base_model(tokens, use_cache=False).last_hidden_state[0, -count:]
    return states


class Opening:
    """The first tokens of an answer, as states that are optimised.

    Args:
        head: A model's output head.
        states: (U, d) last hidden states from which the first U tokens were read, U ≥ 1.
    """

    def __init__(self, head: Any, states: Tensor) -> None:
        self._head = head
        self._states = torch.nn.Parameter(states.clone())  # (U, d)
        self._adam = torch.optim.Adam([self._states], lr=RATE)

    def step(self, reward: float) -> None:
        """Take one step against the reward, in [−1, 0], of the answer that these tokens began."""
        self._adam.zero_grad()
        with torch.enable_grad():
            likely = self._head(self._states).softmax(dim=-1) + _TINY  # (U, V)
            chosen = likely.argmax(dim=-1, keepdim=True)
            loss = -reward * likely.gather(-1, chosen).log().sum()
        loss.backward()
        self._adam.step()

    @torch.no_grad()
    def tokens(self) -> list[int]:
        """Return the head's likeliest tokens, U of them."""
        found: list[int] = self._head(self._states).argmax(dim=-1).tolist()
        return found
