"""What an adapter is taught by: labels, its own certainty (TTSV), or its own majorities (TTRL).

Owns the three objectives. Knows nothing of how steps are taken, and of no right answer.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.asking import elected, first_seed, vote
from bench.bounds.adapters import Adapter
from bench.bounds.fit import Rise, Told, answer, backward, forward_of
from model.engine import Decoding, Generation, Label
from model.frozen_model import FrozenModel
from model.target import Target
from server.steering.prompt import RenderedPrompt
from server.steering.search.gradient import advantages
from worker.dataset import Example

VOTES = 8
"""Of TTRL's majority, all of which are rewarded; published are 64, of which 32 are."""


def by_labels(model: FrozenModel, adapter: Adapter, examples: Sequence[Example]) -> Rise:
    """Raise the likelihood of labels, as a night does."""

    def rise(batch: list[int]) -> Told:
        some = [examples[at] for at in batch]
        return backward(
            model,
            adapter,
            [example.prompt for example in some],
            [example.label for example in some],
            [-example.weight / len(some) for example in some],
        )

    return rise


def by_certainty(model: FrozenModel, adapter: Adapter, prompts: Sequence[RenderedPrompt]) -> Rise:
    """Lower the mean entropy per token of greedy answers, as TTSV does (arXiv 2512.04748)."""

    def rise(batch: list[int]) -> Told:
        some = [prompts[at] for at in batch]
        given, read = _answers(model, adapter, some, [prompt.decoding for prompt in some])
        found = backward(
            model,
            adapter,
            [prompt.token_ids for prompt in some],
            [_label(one, prompt) for one, prompt in zip(given, some, strict=True)],
            [1 / len(some)] * len(some),
            entropy,
        )
        return replace(found, forward=found.forward + read)

    return rise


def by_majority(model: FrozenModel, adapter: Adapter, prompts: Sequence[RenderedPrompt], seed: int) -> Rise:
    """Reward samples that say what most of their question's say, as TTRL does (arXiv 2504.16084).

    The reward is 1 or 0; advantages are standardised within each question, and each sample makes one step.
    """
    drawn = 0

    def rise(batch: list[int]) -> Told:
        nonlocal drawn
        asked = [prompts[at] for at in batch for _ in range(VOTES)]
        ways = []
        for number, prompt in enumerate(asked):
            sample_seed = (first_seed(seed, drawn) + number) % 2**32
            ways.append(replace(prompt.decoding, temperature=1.0, seed=sample_seed))
        drawn += 1
        given, read = _answers(model, adapter, asked, ways)
        rewards: list[float] = []
        gains: list[float] = []
        for start in range(0, len(asked), VOTES):
            votes = [vote(asked[start], one) for one in given[start : start + VOTES]]
            chosen = elected(votes)
            worth = [float(chosen is not None and said == votes[chosen]) for said in votes]
            rewards += worth
            gains += advantages(worth)
        told = [at for at, gain in enumerate(gains) if gain]
        forward = read
        if told:
            forward += backward(
                model,
                adapter,
                [asked[at].token_ids for at in told],
                [_label(given[at], asked[at]) for at in told],
                [-gains[at] / len(asked) for at in told],
            ).forward
        return Told(sum(rewards) / len(rewards), forward)

    return rise


def entropy(target: Target, logits: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of what stands at each token that is not forced, (n, V)."""
    found = []
    for row, at in zip(logits, target.decided, strict=True):
        allowed = target.allowed(at)
        logs = (row if allowed is None else row[allowed]).log_softmax(dim=0)
        found.append(-(logs.exp() * logs).sum())
    return torch.stack(found).mean()


def _answers(
    model: FrozenModel, adapter: Adapter, prompts: Sequence[RenderedPrompt], ways: Sequence[Decoding]
) -> tuple[list[Generation], int]:
    """Return answers, and the tokens that they took."""
    tokens = [prompt.token_ids for prompt in prompts]
    given = answer(model, adapter, tokens, ways)
    return given, sum(forward_of(adapter, some, one) for some, one in zip(tokens, given, strict=True))


def _label(given: Generation, prompt: RenderedPrompt) -> Label:
    return Label.of(given.token_ids, prompt.decoding.choices or ())
