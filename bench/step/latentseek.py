"""One optimisation step as LatentSeek publishes it (arXiv 2505.13308, code bigai-nlco/LatentSeek).

Owns our own rendering of what that step costs: after one on the answer's first states, which is
`bench/latentseek.py`, the rest is decoded greedily, each token by a forward pass over the whole sequence.

Left out, in its favour: its self-reward, up to four judgements of the model per step.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bench.latentseek import SHARE, Opening, states_of


class LatentSeek:
    """One answer on its way to a better one.

    Args:
        network: a frozen causal language model of transformers.
        prompt: tokens of the rendered prompt.
        answer_tokens: length of every answer.
    """

    def __init__(self, network: Any, prompt: Sequence[int], answer_tokens: int) -> None:
        self._network, self._head = network, network.get_output_embeddings()
        self._prompt, self._length = prompt, answer_tokens
        count = int(SHARE * answer_tokens)
        if count < 1:
            raise ValueError(f"an answer of {answer_tokens} tokens has no state to optimise: 10 are needed")
        first = self._answer([], count)
        self._opening = Opening(self._head, states_of(network, prompt, first, count))

    def step(self, reward: float) -> list[int]:
        """Take one step against the reward of the last answer and return the new one's tokens."""
        self._opening.step(reward)
        return self._answer(self._opening.tokens(), self._length)

    @torch.no_grad()
    def _answer(self, tokens: list[int], length: int) -> list[int]:
        """Return the greedy answer of so many tokens that begins with these."""
        sequence = torch.tensor([[*self._prompt, *tokens]], device=self._network.device)
        while len(tokens) < length:
            output = self._network.base_model(sequence, output_hidden_states=True)
            token = self._head(output[0][:, -1]).argmax(dim=-1)  # (1,)
            sequence = torch.cat([sequence, token[None]], dim=1)
            tokens.append(int(token))
        return tokens
