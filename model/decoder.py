"""Decoding answers, token by token.

Owns sampling, stop strings, choices and confidence. Knows nothing of where prompts come from.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from model.choice_trie import ChoiceTrie
from model.engine import Decoding, Generation
from model.prefill import Row, positions, prefill
from model.prefixes import Prefixes


class Draft:
    """One answer on its way.

    Args:
        decoding: how tokens are chosen.
        room: most tokens it may have, at least 1.
        ends: tokens that end an answer.
        trie: the choices, when the answer must be one of them.
        to_text: text of tokens, special tokens left out.
        given_up: whether nobody waits for the answer any more; then it is cut off.
    """

    def __init__(
        self,
        decoding: Decoding,
        room: int,
        ends: frozenset[int],
        trie: ChoiceTrie | None,
        to_text: Callable[[Sequence[int]], str],
        given_up: Callable[[], bool],
    ) -> None:
        self._decoding, self._room, self._ends, self._trie = decoding, room, ends, trie
        self._to_text, self._given_up = to_text, given_up
        self._random = torch.Generator()
        if decoding.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(decoding.seed)
        self._logprobs: list[float] = []
        self._stopped_at: int | None = None
        self.tokens: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        """None while the answer goes on."""

    def cut_if_given_up(self) -> None:
        """End the answer where it is when nobody waits for it."""
        if self._given_up():
            self.finish_reason = "length"

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from its logits, (V,) float32 on the CPU."""
        choosable = logits
        if self._trie is not None:
            allowed = self._trie.allowed(self.tokens)
            choosable = torch.full_like(logits, -torch.inf)
            choosable[allowed] = logits[allowed]
        self.tokens.append(self._choose(choosable))
        if self._decoding.logprobs:
            self._logprobs.append(float(logits.log_softmax(dim=-1)[self.tokens[-1]]))
        if self.tokens[-1] in self._ends or self._meets_stop():
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._room:
            self.finish_reason = "length"
        else:
            self.cut_if_given_up()

    def generation(self) -> Generation:
        """Return the finished answer."""
        if self.finish_reason is None:
            raise RuntimeError("the answer is not finished")
        return Generation(
            text=self._to_text(self.tokens)[: self._stopped_at],
            token_ids=tuple(self.tokens),
            finish_reason=self.finish_reason,
            logprobs=tuple(self._logprobs),
        )

    def _choose(self, logits: torch.Tensor) -> int:
        if self._decoding.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / self._decoding.temperature).softmax(dim=-1)
        if self._decoding.top_p < 1:
            ordered, tokens = probabilities.sort(descending=True)
            # Keeps the token that crosses top_p, so that at least one is left.
            ordered[ordered.cumsum(dim=-1) - ordered >= self._decoding.top_p] = 0
            return int(tokens[self._draw(ordered)])
        return self._draw(probabilities)

    def _draw(self, weights: torch.Tensor) -> int:
        """Return an index with a chance in proportion to its weight, none where that is 0.

        By one number in (0, total]: `torch.multinomial` draws as many as there are tokens, which took a
        tenth of the time of decoding with a vocabulary of 150,000.
        """
        sums = weights.double().cumsum(dim=-1)
        if not bool(torch.isfinite(sums[-1])):
            raise RuntimeError("the model's logits are not finite")
        drawn = (1 - torch.rand(1, generator=self._random, dtype=torch.float64)) * sums[-1]
        return int(torch.searchsorted(sums, drawn))

    def _meets_stop(self) -> bool:
        if self._decoding.stop:
            text = self._to_text(self.tokens)
            found = [at for at in (text.find(stop) for stop in self._decoding.stop) if at >= 0]
            self._stopped_at = min(found, default=None)
        return self._stopped_at is not None


@torch.no_grad()
def decode(
    network: Any, rows: Sequence[Row], drafts: Sequence[Draft], prefixes: Prefixes | None = None
) -> None:
    """Decode until every draft is finished; rows whose draft is finished leave the batch.

    `prefixes` as `kept` of `prefill`.
    """
    state = prefill(network, rows, kept=prefixes)
    logits = state.logits[:, -1]
    going = list(range(len(rows)))
    while True:
        for row, index in zip(logits.float().cpu(), going, strict=True):
            drafts[index].take(row)
        kept = [at for at, index in enumerate(going) if drafts[index].finish_reason is None]
        if not kept:
            return
        if len(kept) < len(going):
            state.keep_rows(kept)
            going = [going[at] for at in kept]
        state.mask = torch.nn.functional.pad(state.mask, (0, 1), value=1)
        tokens = torch.tensor([[drafts[index].tokens[-1]] for index in going], device=state.mask.device)
        logits = network(
            input_ids=tokens,
            attention_mask=state.mask,
            position_ids=positions(state.mask)[:, -1:],
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
