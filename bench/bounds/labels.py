"""What a night of a finished stream learned from, once more, and with the right answers in its place.

Owns both datasets. The night's is made by the worker's own code from what the run remembers; in the other
each label is right. Right answers to free questions are found among the model's own, for a right number alone
says nothing of how to come to it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from bench.asking import first_seed
from bench.stream.loop import Loop
from bench.stream.questions import Scorer
from cli.demonstration.stream import Item
from cli.failure import CommandError
from memory.snapshot import write_snapshot
from model.engine import Decoding, Engine, Label, SteeredPrompt
from worker.dataset import Dataset, Example, Fold, load_by_settings
from worker.errors import TooFewEpisodesError

TRIES = 8
"""Answers among which a right one is looked for."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """What is trained on: a night's dataset, and whether each label of it is right."""

    dataset: Dataset
    right: tuple[bool, ...]

    @property
    def fold(self) -> Fold:
        """The training that is published."""
        return self.dataset.folds[-1]

    @property
    def examples(self) -> list[Example]:
        """What that training sees."""
        return [self.dataset.examples[at] for at in self.fold.train]

    @property
    def right_share(self) -> tuple[int, int]:
        """How many labels of that training are right, of how many."""
        return sum(self.right[at] for at in self.fold.train), len(self.fold.train)


async def of_night(loop: Loop, items: Sequence[Item], scorer: Scorer) -> tuple[Labelled, dict[str, Item]]:
    """Return what a night after these questions learned from, and the questions by the id of their episode.

    Raises:
        CommandError: that was too little.
    """
    found = loop.remembered(items)
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot((episode for _, episode in found), Path(folder) / "snapshot")
        try:
            dataset = await load_by_settings(
                Path(folder) / "snapshot", loop.engine, loop.engine.space.id, loop.settings
            )
        except TooFewEpisodesError as error:
            raise CommandError(f"the night had nothing to learn from: {error}") from error
    known = {episode.id: item for item, episode in found}
    right = tuple(scorer.correct(example.answer, known[example.id]) for example in dataset.examples)
    return Labelled(dataset, right), known


async def with_gold(
    engine: Engine, night: Labelled, known: dict[str, Item], scorer: Scorer, latents: Tensor, seed: int
) -> Labelled:
    """Return the same examples with right labels; those to which none is found are left out.

    Args:
        engine: The model.
        night: The examples with the night's labels.
        known: Questions by the id of their episode.
        scorer: Knows what is right.
        latents: (C, L, d) that the night's labels taught: under them free answers are sampled, until one is
            right.
        seed: Of the samples.
    """
    kept = []
    for number, (example, right) in enumerate(zip(night.dataset.examples, night.right, strict=True)):
        if number not in set(night.fold.train):
            continue
        item = known[example.id]
        if example.choices:
            gold = next((choice for choice in example.choices if scorer.correct(choice, item)), None)
            tokens = None if gold is None else engine.answer_tokens(gold)
        elif right:
            gold, tokens = example.answer, example.label.answers[0]
        else:
            seeds = first_seed(seed, number)
            longest = example.max_tokens or max(map(len, example.label.answers))
            prompt = SteeredPrompt(example.prompt, latents[example.cluster])
            ways = [Decoding(longest, temperature=1.0, seed=seeds + at) for at in range(TRIES)]
            answers = await engine.generate([prompt] * TRIES, ways)
            good = (a for a in answers if a.finish_reason == "stop" and scorer.correct(a.text, item))
            found = next(good, None)
            gold, tokens = (None, None) if found is None else (found.text, found.token_ids)
        if gold is not None and tokens is not None:
            label = Label.of(tokens, example.choices)
            kept.append(replace(example, label=label, answer=gold, weight=1.0))
    if not kept:
        raise CommandError("no right answer to any of the night's questions is known", None)
    clusters = sorted({example.cluster for example in kept})
    examples = tuple(replace(example, cluster=clusters.index(example.cluster)) for example in kept)
    dataset = replace(
        night.dataset,
        examples=examples,
        leanings=tuple(night.dataset.leanings[cluster] for cluster in clusters),
        folds=(Fold("gold", tuple(range(len(examples))), ()),),
    )
    return Labelled(dataset, (True,) * len(examples))
