"""Training adapters on a night's examples, and answering with them.

Owns the steps and the decoding. The likelihood is the night's (`model/target.py`); nothing is stopped early.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from bench.bounds.adapters import Adapter
from model.choice_trie import ChoiceTrie
from model.decoder import Draft, decode
from model.engine import Decoding, Generation
from model.frozen_model import FrozenModel
from model.prefill import Row, batches, prefill
from model.target import offsets_of, readings, values_of
from worker.dataset import Example

BATCH = 4
COLUMNS = 1024
"""Most padded columns of one pass with gradient: some 1.5 GB for a model of 0.5B."""
DECODED_COLUMNS = 16_384

Progress = Callable[[int, int, str], None]


def fit(
    model: FrozenModel,
    adapter: Adapter,
    examples: Sequence[Example],
    passes: int,
    seed: int,
    progress: Progress = lambda done, total, message: None,
) -> list[float]:
    """Raise the likelihood of the examples' labels, each seen `passes` times.

    Returns the mean likelihood of each step's labels, before the step.
    """
    adam = torch.optim.Adam(list(adapter.tensors().values()), lr=adapter.learning_rate)
    steps = list(_steps(len(examples), passes, seed))
    means = []
    with adapter.attached():
        for number, batch in enumerate(steps):
            adam.zero_grad()
            means.append(_rise(model, adapter, [examples[at] for at in batch]))
            adam.step()
            progress(number + 1, len(steps), f"log-likelihood {means[-1]:.3f}")
    return means


def answer(
    model: FrozenModel, adapter: Adapter, prompts: Sequence[tuple[int, ...]], decodings: Sequence[Decoding]
) -> list[Generation]:
    """Decode one answer per prompt, (B,)."""
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
    with adapter.attached():
        for group in batches(sizes, DECODED_COLUMNS, sizes.__getitem__):
            decode(model.network, [rows[at] for at in group], [drafts[at] for at in group], adapter.kept)
    return [draft.generation() for draft in drafts]


def _steps(count: int, passes: int, seed: int) -> Iterator[list[int]]:
    for number in range(passes):
        order = np.random.default_rng((seed, number)).permutation(count).tolist()
        yield from (order[start : start + BATCH] for start in range(0, count, BATCH))


def _rise(model: FrozenModel, adapter: Adapter, examples: Sequence[Example]) -> float:
    """Leave the gradient of the negative weighted likelihood, and return the mean likelihood."""
    choices = {example.choices for example in examples if example.choices}
    needed = readings(
        [example.label for example in examples],
        range(len(examples)),
        {some: _trie(model, some) for some in choices},
    )
    rows = [_row(model, adapter, (*examples[one.label].prompt, *one.inputs)) for one in needed]
    total = 0.0
    sizes = [len(row.rest) for row in rows]
    for group in batches(sizes, COLUMNS, sizes.__getitem__):
        read = [needed[at] for at in group]
        offsets = offsets_of(read)
        logits = prefill(model.network, [rows[at] for at in group], offsets, adapter.kept).logits
        parts = values_of(logits, read, offsets)
        loss = -torch.stack([examples[label].weight * value for label, value in parts]).sum() / len(examples)
        loss.backward()  # type: ignore[no-untyped-call]
        total += sum(float(value.detach()) for _, value in parts)
    return total / len(examples)


def _row(model: FrozenModel, adapter: Adapter, tokens: Sequence[int]) -> Row:
    # Nothing of a prompt is computed beforehand: an adapter changes all of it.
    return Row(adapter.prefix, model.embeddings(tokens))


def _trie(model: FrozenModel, choices: tuple[str, ...]) -> ChoiceTrie:
    answers = [model.answer_tokens(choice) for choice in choices]
    return ChoiceTrie([list(answer[:-1]) for answer in answers], answers[0][-1])
