"""What is written down beside a published prior.

Owns the night's part of `manifest.json`: data, training, evidence. Version, space, rows and checksum are the
registry's.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from config.settings import Settings
from memory.night import NightRecord
from memory.prior import RECALL_FLOOR, Prior, Row, lines_digest
from worker.dataset import Dataset, Fold
from worker.judge import Judged
from worker.train import Recipe, Trained

NIGHT = "night"
"""Field that names the night a version came of."""


def manifest_of(
    record: NightRecord,
    settings: Settings,
    dataset: Dataset,
    trainings: Sequence[tuple[Fold, Trained]],
    judged: Sequence[Judged],
    carried: Sequence[Row],
    alive: Prior | None,
    floor: float,
) -> dict[str, Any]:
    """Return what is known of a version.

    `labels` are of all that the night learned from or was judged by: the choice that is right, null for the
    answer as it was remembered. No text of a free answer is kept.

    Args:
        record: of the night.
        settings: of the worker.
        dataset: what it learned from.
        trainings: each fold and what came of it, the published one last.
        judged: each cluster's differences.
        carried: rows of the version before that go on.
        alive: the version before.
        floor: least cosine of a recalled episode that was learned.
    """
    published, _ = trainings[-1]
    examples = [dataset.examples[number] for number in published.train]
    known = alive.learned if alive else {}
    learned = {row.id: sorted(known.get(row.id, ())) for row in carried}
    return {
        NIGHT: record.id,
        "parent": record.parent,
        "window": {
            "oldest": min(example.seen_at for example in dataset.examples),
            "newest": max(example.seen_at for example in dataset.examples),
        },
        "episodes": dataset.episodes,
        "left_out": dataset.left_out,
        "digests": digests_of(dataset),
        "labels": [[e.id, e.answer if e.choices else None] for e in dataset.examples],
        "learned": {
            **learned,
            **{
                str(cluster): sorted(e.digest for e in examples if e.cluster == cluster)
                for cluster in range(dataset.clusters)
            },
        },
        "duplicate_cosine": dataset.duplicate_cosine,
        "trainings": [
            {
                "fold": fold.name,
                "examples": len(fold.train),
                "judged_by": len(fold.test),
                "steps": trained.steps,
                "best_step": trained.best_step,
                "looks": [asdict(look) for look in trained.looks],
            }
            for fold, trained in trainings
        ],
        "evidence": [_evidence(dataset, cluster, found) for cluster, found in enumerate(judged)],
        RECALL_FLOOR: floor,
        "seed": settings.night_seed,
        "settings": asdict(Recipe.of(settings, len(examples))),
        "code_version": code_version(),
    }


def digests_of(dataset: Dataset) -> dict[str, str]:
    """Return SHA-256 of the sorted ids of the episodes, and of what is known of each.

    That is a line of JSON: its id, its prompt's digest, its cluster and its answer.
    """
    rows = sorted([e.id, e.digest, e.cluster, e.answer] for e in dataset.examples)
    return {
        "episodes_sha256": lines_digest(e.id for e in dataset.examples),
        "dataset_sha256": lines_digest(json.dumps(row, ensure_ascii=True) for row in rows),
    }


def _evidence(dataset: Dataset, cluster: int, judged: Judged) -> dict[str, Any]:
    numbers = dataset.of(cluster, range(len(dataset.examples)))
    return {
        "row": cluster,
        "examples": len(numbers),
        "held_to_choices": sum(bool(dataset.examples[number].choices) for number in numbers),
        "like": dataset.examples[numbers[-1]].answer,
        **asdict(judged.evidence),
        "candidate": judged.candidate,
        "baseline": judged.baseline,
        "random": judged.random,
        "mean_latent": judged.mean,
        "differences": [list(pair) for pair in judged.differences],
    }


def code_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("latentevolve")
    except PackageNotFoundError:
        return "not installed"
