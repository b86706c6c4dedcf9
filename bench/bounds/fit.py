"""Training adapters by what they make of prompts, and answering with them.

Owns the steps, the passes with gradient and the decoding. Likelihoods are the night's (`model/target.py`);
nothing is stopped early.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.bounds.adapters import Adapter
from model.choice_trie import ChoiceTrie
from model.decoder import Draft, decode
from model.engine import Decoding, Generation, Label
from model.frozen_model import FrozenModel
from model.prefill import Row, batches, prefill
from model.target import Target, offsets_of, readings, values_of

COLUMNS = 1024
"""Most padded columns of one pass with gradient: some 1.5 GB for a model of 0.5B."""
DECODED_COLUMNS = 16_384

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Told:
    """What a batch was worth before its step."""

    value: float
    """The mean of what is raised or lowered."""
    forward: int
    """Forward-equivalent tokens that it took: one of a forward pass counts 1, of forward and backward 3."""


Rise = Callable[[list[int]], Told]
"""Leaves the gradient of a batch, the numbers of what is learned from, in the adapter's tensors."""


def fit(
    adapter: Adapter,
    rise: Rise,
    count: int,
    *,
    passes: int,
    batch: int,
    seed: int,
    progress: Progress = lambda done, total, message: None,
) -> list[Told]:
    """Take a step of Adam for each batch, each of `count` seen `passes` times; return what each was worth."""
    adam = torch.optim.Adam(list(adapter.tensors().values()), lr=adapter.learning_rate)
    steps = list(_steps(count, passes, batch, seed))
    found = []
    with adapter.attached():
        for number, some in enumerate(steps):
            adam.zero_grad()
            found.append(rise(some))
            adam.step()
            progress(number + 1, len(steps), f"{found[-1].value:.3f}")
    return found


def backward(
    model: FrozenModel,
    adapter: Adapter,
    prompts: Sequence[tuple[int, ...]],
    labels: Sequence[Label],
    weights: Sequence[float],
    value: Callable[[Target, Tensor], Tensor] = Target.value,
) -> Told:
    """Add the gradient of Σ weight · value of B labels to the adapter's tensors, which are attached.

    Returns the mean value, unweighted.
    """
    choices = {label.choices for label in labels if label.choices}
    needed = readings(labels, range(len(labels)), {some: _trie(model, some) for some in choices})
    rows = [_row(model, adapter, (*prompts[one.label], *one.inputs)) for one in needed]
    sizes = [len(row.prefix) + len(row.rest) for row in rows]
    total = 0.0
    for group in batches(sizes, COLUMNS, sizes.__getitem__):
        read = [needed[at] for at in group]
        offsets = offsets_of(read)
        logits = prefill(model.network, [rows[at] for at in group], offsets, adapter.kept).logits
        parts = values_of(logits, read, offsets, value)
        torch.stack([weights[label] * part for label, part in parts]).sum().backward()  # type: ignore[no-untyped-call]
        total += sum(float(part.detach()) for _, part in parts)
    return Told(total / len(labels), 3 * sum(sizes))


def answer(
    model: FrozenModel, adapter: Adapter, prompts: Sequence[tuple[int, ...]], decodings: Sequence[Decoding]
) -> list[Generation]:
    """Decode one answer per prompt, (B,), with an adapter that is attached."""
    ends = frozenset(model.ends)
    drafts = [
        Draft(
            how,
            how.max_tokens,
            ends,
            _trie(model, how.choices) if how.choices else None,
            model.decode,
            lambda: False,
        )
        for how in decodings
    ]
    rows = [_row(model, adapter, prompt) for prompt in prompts]
    sizes = [
        len(row.prefix) + len(row.rest) + how.max_tokens for row, how in zip(rows, decodings, strict=True)
    ]
    with torch.no_grad():
        for group in batches(sizes, DECODED_COLUMNS, sizes.__getitem__):
            decode(model.network, [rows[at] for at in group], [drafts[at] for at in group], adapter.kept)
    return [draft.generation() for draft in drafts]


def forward_of(adapter: Adapter, prompt: Sequence[int], answer: Generation) -> int:
    """Return the tokens of one forward pass that an answer took."""
    return adapter.before + len(prompt) + len(answer.token_ids)


def _steps(count: int, passes: int, batch: int, seed: int) -> Iterator[list[int]]:
    for number in range(passes):
        order = np.random.default_rng((seed, number)).permutation(count).tolist()
        yield from (order[start : start + batch] for start in range(0, count, batch))


def _row(model: FrozenModel, adapter: Adapter, tokens: Sequence[int]) -> Row:
    # Nothing of a prompt is computed beforehand: an adapter changes all of it.
    return adapter.row(model.embeddings(tokens))


def _trie(model: FrozenModel, choices: tuple[str, ...]) -> ChoiceTrie:
    answers = [model.answer_tokens(choice) for choice in choices]
    return ChoiceTrie([list(answer[:-1]) for answer in answers], answers[0][-1])
