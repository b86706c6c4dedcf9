"""What a trained table is worth beside what is served now.

Owns the comparison by the prompts that a training has not seen, cluster by cluster, and where each latent may
speak. Decides nothing: the differences go to `memory/evidence.py`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory.evidence import SHARED, Evidence, weigh
from memory.prior import DEFAULT_FLOOR, Coverage, Prior, Row
from model.engine import Engine
from worker.dataset import Dataset, Example, Fold
from worker.measure import by_group, outcomes, same_norms
from worker.train import Progress, Trained

SAMPLES = 3
"""Answers to a free prompt beside the greedy one: an outcome in quarters tells more than yes or no."""
MOST_JUDGING = 96
"""Most prompts of one fold that judge."""
SHOWN = 16
"""Prompts on which the random and the mean latent are measured, for people to see; they do not decide."""

FARTHER = 1.5
"""How many times as far from the centroids as unseen prompts of the cluster a latent may speak: 1 − cosine
(decisions/nights.md)."""
LEFT_OUT = 0.05
"""Share of the unseen prompts that may lie outside, rounded down: of few none."""
_ROUNDING = 1e-5
"""The same cosine computed one by one and as a matrix differs in the last digits."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What one night found of one cluster's latent."""

    differences: tuple[tuple[str, float], ...]
    """(digest of a prompt, outcome under the latent less outcome of the baseline in [-1, 1]), one per
    duplicate group, in the order they were looked at."""
    candidate: float | None
    """Mean outcome under the latent; None: nothing could be judged."""
    baseline: float | None
    random: float | None
    """Mean outcome under a random latent with rows of the same norms, on some of the prompts."""
    mean: float | None
    """The same under the mean of the latents that earned their place."""
    stake: float
    """What its evidence begins with: less than 1 where halves of the prompts judged each other's training."""

    @property
    def evidence(self) -> Evidence:
        """What the differences weigh."""
        return weigh([difference for _, difference in self.differences], stake=self.stake)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Test prompts of one cluster under one fold's training."""

    examples: list[Example]
    candidate: np.ndarray
    baseline: np.ndarray


async def judge(
    engine: Engine,
    dataset: Dataset,
    trainings: Sequence[tuple[Fold, Trained]],
    serving: Prior | None,
    *,
    seed: int,
    progress: Progress = lambda done, total, message: None,
) -> list[Judged]:
    """Return what each cluster's latent is worth, by the folds' test prompts.

    Args:
        engine: the model.
        dataset: of the night.
        trainings: each fold and what came of it.
        serving: the rows that serve now; where one covers a prompt it is the baseline, elsewhere no latent
        is.
            Prompts that such a row has learned from judge nothing: its answers to them are learned by heart.
        seed: of the random latents.
        progress: told what is going on.

    Raises:
        EngineError: the engine failed.
    """
    learned = serving.learned if serving else {}
    seen_of: list[list[_Seen]] = [[] for _ in range(dataset.clusters)]
    total = sum(min(len(fold.test), MOST_JUDGING) for fold, _ in trainings)
    done = 0
    for fold, trained in trainings:
        for cluster, numbers in enumerate(_shares(dataset, fold)):
            examples = []
            base: list[torch.Tensor | None] = []
            for number in numbers:
                example = dataset.examples[number]
                row = serving.row(example.key) if serving else None
                if row is not None and example.digest in learned.get(row.id, ()):
                    continue
                examples.append(example)
                base.append(None if row is None else torch.from_numpy(row.latent))
            progress(done, total, "answers under the new latents, and as they are served now")
            done += len(numbers)
            if examples:
                ours = await outcomes(
                    engine, examples, [trained.latents[cluster]] * len(examples), samples=SAMPLES
                )
                theirs = await outcomes(engine, examples, base, samples=SAMPLES)
                seen_of[cluster].append(_Seen(examples, ours, theirs))
    generator = torch.Generator().manual_seed(seed)
    judged = []
    for cluster, seen in enumerate(seen_of):
        latent = trainings[-1][1].latents[cluster]
        shown = _shown(dataset, cluster)
        progress(total, total, "answers under a random latent, and under the mean of the remembered ones")
        random = await outcomes(engine, shown, [same_norms(latent, generator) for _ in shown])
        mean = None
        if dataset.mean_latent is not None:
            mean = await outcomes(engine, shown, [torch.from_numpy(dataset.mean_latent)] * len(shown))
        judged.append(
            Judged(
                tuple(
                    pair
                    for one in seen
                    for pair in by_group(one.examples, np.clip(one.candidate - one.baseline, -1, 1).tolist())
                ),
                _mean([one.candidate for one in seen]),
                _mean([one.baseline for one in seen]),
                float(random.mean()),
                None if mean is None else float(mean.mean()),
                stake_of(dataset),
            )
        )
    return judged


def stake_of(dataset: Dataset) -> float:
    """Return what the evidence of a night begins with."""
    return 1.0 if len(dataset.folds) == 1 else SHARED


def rows(dataset: Dataset, trained: Trained, serving: Prior | None, *, seed: int) -> tuple[list[Row], float]:
    """Return the night's new rows, without ids, one per cluster, and the floor of recall beside them.

    A latent speaks around its cluster's keys, `FARTHER` times as wide as what half of them needs to reach the
    other half.
    """
    made, floors = [], []
    for cluster in range(dataset.clusters):
        numbers = dataset.of(cluster, range(len(dataset.examples)))
        keys = dataset.keys(numbers)
        reach, nearest = _reach(dataset, numbers, seed)
        threshold = max(1 - FARTHER * (1 - reach), DEFAULT_FLOOR) - _ROUNDING
        baseline = serving.row(keys.mean(axis=0)) if serving else None
        made.append(
            Row(
                "",
                trained.latents[cluster].numpy(),
                Coverage.around(keys, threshold, seed=seed),
                baseline.id if baseline else None,
                stake_of(dataset),
                dataset.leanings[cluster],
            )
        )
        floors.append(max(DEFAULT_FLOOR, nearest - _ROUNDING))
    return made, min(floors)


def _reach(dataset: Dataset, numbers: Sequence[int], seed: int) -> tuple[float, float]:
    """Return how near keys of a cluster are to centroids of others of it, and to the nearest of these."""
    groups = sorted({dataset.examples[number].group for number in numbers})
    half = set(np.random.default_rng(seed).permutation(groups)[: len(groups) // 2].tolist())
    here = dataset.keys(number for number in numbers if dataset.examples[number].group in half)
    there = dataset.keys(number for number in numbers if dataset.examples[number].group not in half)
    quantile = math.floor(LEFT_OUT * len(there)) / max(len(there) - 1, 1)
    centroids = Coverage.around(here, DEFAULT_FLOOR, seed=seed).centroids
    reach = float(np.quantile((there @ centroids.T).max(axis=1), quantile))
    return reach, float(np.quantile((there @ here.T).max(axis=1), quantile))


def _shares(dataset: Dataset, fold: Fold) -> list[list[int]]:
    """Return the test prompts that judge, by cluster, as many of each as it has and there is room for.

    Of a cluster one of each duplicate group comes first, then a second of each, and so on.
    """
    seen: Counter[int] = Counter()
    turns = []
    for number in fold.test:
        example = dataset.examples[number]
        turns.append((seen[example.group], example.cluster, number))
        seen[example.group] += 1
    places: Counter[int] = Counter()
    ranked = []
    for _, cluster, number in sorted(turns):
        ranked.append((places[cluster], number))
        places[cluster] += 1
    chosen = sorted(number for _, number in sorted(ranked)[:MOST_JUDGING])
    return [dataset.of(cluster, chosen) for cluster in range(dataset.clusters)]


def _shown(dataset: Dataset, cluster: int) -> list[Example]:
    numbers = dataset.of(cluster, range(len(dataset.examples)))
    return [dataset.examples[number] for number in numbers[:: max(1, len(numbers) // SHOWN)][:SHOWN]]


def _mean(parts: Sequence[np.ndarray]) -> float | None:
    return float(np.concatenate(parts).mean()) if parts else None
