"""One optimisation step as LatentSeek publishes it (arXiv 2505.13308, code bigai-nlco/LatentSeek).

Owns our own rendering of what that step costs: after one on the answer's first states, which is
`bench/latentseek.py`, the rest is decoded greedily, each token by a forward pass over the whole sequence.

Left out, in its favour: its self-reward, up to four judgements of the model per step.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bench.latentseek import SHARE, Opening


class LatentSeek:
    """One answer on its way to a better one.

    Args:
        network: a frozen causal language model of transformers.
        prompt: tokens of the rendered prompt.
        answer_tokens: length of every answer.
    """

    def __init__(self, network: Any, prompt: Sequence[int], answer_tokens: int) -> None:
        self._network, self._head = network, network.get_output_embeddings()
        self._prompt = torch.tensor([list(prompt)], device=network.device)  # (1, T)
        self._length = answer_tokens
        states = self._first_answer()
        count = int(SHARE * len(states))
        if count < 1:
            raise ValueError(f"an answer of {answer_tokens} tokens has no state to optimise: 10 are needed")
        self._opening = Opening(self._head, states[:count])

    def step(self, reward: float) -> list[int]:
        """Take one step against the reward of the last answer and return the new one's tokens."""
        self._opening.step(reward)
        return self._answer()

    @torch.no_grad()
    def _answer(self) -> list[int]:
        tokens = self._opening.tokens()
        sequence = torch.cat([self._prompt, torch.tensor([tokens], device=self._prompt.device)], dim=1)
        while len(tokens) < self._length:
            output = self._network.base_model(sequence, output_hidden_states=True)
            token = self._head(output[0][:, -1]).argmax(dim=-1)  # (1,)
            sequence = torch.cat([sequence, token[None]], dim=1)
            tokens.append(int(token))
        return tokens

    @torch.no_grad()
    def _first_answer(self) -> torch.Tensor:
        """Return the last hidden states of a greedy answer, (answer_tokens, d).

        With a KV cache, which the published code does without here too: this is no part of a step.
        """
        states, cache, tokens = [], None, self._prompt
        for _ in range(self._length):
            output = self._network.base_model(tokens, past_key_values=cache, use_cache=True)
            states.append(output.last_hidden_state[0, -1])
            cache = output.past_key_values
            tokens = self._head(states[-1][None]).argmax(dim=-1)[None]  # (1, 1)
        return torch.stack(states)
