"""One optimisation step as LatentSeek publishes it (arXiv 2505.13308, code bigai-nlco/LatentSeek).

Owns our own rendering of that step, which keeps its costs: the optimised vectors are the last hidden states
of the answer's first tokens; the loss passes from there through the output head only; after one step of
Adam the head's likeliest tokens begin the answer, and the rest is decoded greedily with a forward pass over
the whole sequence for every token. Of its parameters, the share of the answer that is optimised and the
learning rate are the published ones.

Left out, in its favour: its self-reward, up to four judgements of the model per step.
"""

from collections.abc import Sequence
from typing import Any

import torch

SHARE = 0.1
"""ρ: share of the answer's tokens whose states are optimised."""
RATE = 0.03
_TINY = 1e-8


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
        self._states = torch.nn.Parameter(states[:count].clone())  # (U, d)
        self._adam = torch.optim.Adam([self._states], lr=RATE)

    def step(self, reward: float) -> list[int]:
        """Take one step against the reward of the last answer and return the new one's tokens."""
        self._adam.zero_grad()
        with torch.enable_grad():
            likely = self._head(self._states).softmax(dim=-1) + _TINY  # (U, V)
            chosen = likely.argmax(dim=-1, keepdim=True)
            loss = -reward * likely.gather(-1, chosen).log().sum()
        loss.backward()
        self._adam.step()
        return self._answer()

    @torch.no_grad()
    def _answer(self) -> list[int]:
        begun = self._head(self._states).argmax(dim=-1)  # (U,)
        sequence = torch.cat([self._prompt, begun[None]], dim=1)
        tokens: list[int] = begun.tolist()
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
