"""What is written down beside a trained prior.

Owns the night's part of `manifest.json`: data, training, gate. Version, space and checksum are the
registry's.
"""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from memory.night import NightRecord
from memory.prior import RECALL_FLOOR, Prior
from worker.gate import GateReport
from worker.neighbourhood import prompt_digest
from worker.split import Split
from worker.training import Recipe, Trained

NIGHT = "night"
"""Field that names the night a version came of."""
TRAINED_PROMPTS = "trained_prompts"
"""Digests of every prompt that the weights have learned from, those of their ancestors included."""


def manifest_of(
    record: NightRecord,
    sides: Split,
    start: Prior | None,
    recipe: Recipe,
    trained: Trained,
    report: GateReport,
    floor: float,
) -> dict[str, Any]:
    """Return what is known of a version.

    Args:
        record: of the night.
        sides: what it trained on and was judged by.
        start: the prior whose weights training began with.
        recipe: how it was trained.
        trained: what came of it.
        report: the gate's.
        floor: least cosine of a recalled episode that was learned.
    """
    everything = [*sides.train, *sides.validation, *sides.holdout]
    prompts = {prompt_digest(episode) for episode in sides.train} | trained_prompts(start)
    return {
        NIGHT: record.id,
        "parent": record.parent,
        "started_from": start.version if start else None,
        "promoted": report.promoted,
        "window": {
            "oldest": min(episode.created_at for episode in everything).isoformat(),
            "newest": max(episode.created_at for episode in everything).isoformat(),
        },
        "episode_ids": [episode.id for episode in sides.train],
        "validation_ids": [episode.id for episode in sides.validation],
        "holdout_ids": [episode.id for episode in sides.holdout],
        TRAINED_PROMPTS: sorted(prompts),
        "twin_cosine": sides.twin_cosine,
        "metrics": {
            "steps": trained.steps,
            "best_step": trained.best_step,
            "validation": [asdict(evaluation) for evaluation in trained.evaluations],
            "latent_error": dict(report.latent_error),
            "coverage": report.coverage,
        },
        RECALL_FLOOR: floor,
        "gate": report.to_json(),
        "seed": recipe.seed,
        "settings": asdict(recipe),
        "code_version": code_version(),
    }


def trained_prompts(prior: Prior | None) -> frozenset[str]:
    """Return the digests of the prompts that a prior has learned from."""
    manifest: Mapping[str, Any] = prior.manifest if prior else {}
    return frozenset(manifest.get(TRAINED_PROMPTS, ()))


def code_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("latentevolve")
    except PackageNotFoundError:
        return "not installed"
