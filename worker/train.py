"""Training latents on a dataset's labels, through the frozen model.

Owns the parametrisation, the steps, which weights are kept and when to stop. Knows a model only as an
`Engine`, and nothing of evidence.

Each cluster has a latent of its own. While it is trained, a low-rank residual of each prompt's key is
added to it, which training needs: without, 83 instead of 124 of 200 held-out answers were right. What
leaves here is the table of what that gives for each cluster's mean key.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from memory.free_space import UNLIMITED, FreeSpace
from model.engine import Engine, SteeredPrompt
from worker import checkpoint as checkpoints
from worker.checkpoint import Counters, Look
from worker.dataset import Dataset, Example, Fold
from worker.errors import TrainingDivergedError
from worker.measure import outcomes

if TYPE_CHECKING:  # so that training itself runs where there is torch, and little else
    from config.settings import Settings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is going on)."""

RANK = 32
"""Of the residual."""
MOST_PASSES = 12
"""Times that one training may see each example: a few dozen answers are soon learned
(decisions/nights.md)."""
LOOK_EVERY = 10
"""Steps between two looks at what the weights are worth; of long trainings a tenth of the steps."""
PATIENCE = 4
"""Looks in a row that are clearly worse than the best one, after which training stops."""
CLEARLY = 2.0
"""Standard errors: with one, three answers that moved together by chance undid later weights."""
ROUNDING = 1e-4
"""Least fall of the mean outcome that can count as worse."""
MAX_SKIPPED = 3
MAX_WATCHED = 32
"""Most examples whose answers are decoded at one look."""


class LatentTable(nn.Module):
    """A latent per cluster, plus a low-rank residual of the key.

    The residual starts at zero, so an untrained table gives `start` everywhere, and its hidden layer is
    bounded, so that no key can make it large.
    """

    def __init__(self, start: Tensor, clusters: int, rank: int = RANK) -> None:
        """`start` is the (L, d) latent that each of the clusters starts from."""
        super().__init__()
        self.length, hidden_size = start.shape
        self.latents = nn.Parameter(start.detach().float().repeat(clusters, 1, 1))  # (C, L, d)
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, self.length * hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, keys: Tensor, clusters: Tensor) -> Tensor:
        """Return latents, (B, L, d), for keys, (B, d), of clusters, (B,)."""
        residual = self.up(torch.tanh(self.down(keys)))  # (B, L·d)
        latents: Tensor = self.latents[clusters] + residual.view(len(keys), self.length, -1)
        return latents

    def table(self, means: Tensor) -> Tensor:
        """Return what is published, (C, L, d): the latents for each cluster's mean key, (C, d)."""
        with torch.no_grad():
            # One by one: in one batch the same weights round to other latents.
            return torch.cat([self(mean[None], torch.tensor([at])) for at, mean in enumerate(means)])


@dataclass(frozen=True)
class Recipe:
    """How latents are trained; what a night takes unless told otherwise stands in `config/settings.py`."""

    steps: int
    batch: int
    learning_rate: float = 2e-3
    seed: int = 0

    def looks_at(self, step: int) -> bool:
        """Return whether the weights are looked at after so many steps."""
        return step % max(LOOK_EVERY, self.steps // 10) == 0 or step == self.steps

    @classmethod
    def of(cls, settings: "Settings", size: int) -> "Recipe":
        """Return the recipe that the settings name, with `MOST_PASSES` at most over `size` examples."""
        batch = min(settings.night_batch, size)
        steps = max(min(settings.night_steps, MOST_PASSES * size // batch), 1)
        return cls(steps, batch, settings.night_learning_rate, settings.night_seed)


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a training."""

    latents: Tensor
    """(C, L, d), one per cluster."""
    steps: int
    best_step: int
    """Whose weights were kept."""
    looks: tuple[Look, ...]
    resumed_at: int
    """Step that a checkpoint let this run begin at; 0: from the start."""


async def train(
    engine: Engine,
    dataset: Dataset,
    fold: Fold,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    room: FreeSpace = UNLIMITED,
    progress: Progress = lambda done, total, message: None,
) -> Trained:
    """Train on a fold's examples and return the latents that are kept.

    Every `LOOK_EVERY` steps greedy answers to some of these examples are compared with their labels, under
    the latents that would be published. Those with the best outcome are kept, of equals the latest
    (decisions/nights.md). Training stops when looks have been clearly worse, by `CLEARLY` standard errors,
    for some time. With `checkpoint`, goes on from there; the result is that of an uninterrupted run, but for
    rounding.

    Raises:
        TrainingDivergedError: gradients were not finite several steps in a row.
        EngineError: the engine failed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = LatentTable(engine.neutral_latent(), dataset.clusters)
    adam = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    examples = [dataset.examples[number] for number in fold.train]
    batches = _Batches(examples, recipe)
    means = _means(examples, dataset.clusters)
    watched = _watched(examples)
    counters = Counters(_fingerprint(network, examples, recipe))
    kept = _copy(network)
    restored = checkpoints.restore(checkpoint, network, adam, counters.fingerprint) if checkpoint else None
    if restored:
        counters, kept = restored
        logger.info("training goes on at step %d of %d", counters.step, recipe.steps)
    resumed_at = counters.step

    while True:
        if not counters.stopped and recipe.looks_at(counters.step):
            known = counters.looks and counters.looks[-1].step == counters.step
            if not known:  # a checkpoint is written after the look at its step
                latents = network.table(means)[[example.cluster for example in watched]]
                finite = bool(torch.isfinite(latents).all())
                values = await outcomes(engine, watched, list(latents)) if finite else None
                if _note(counters, values):
                    kept, counters.best_step = _copy(network), counters.step
                counters.stopped = counters.stale >= PATIENCE or counters.step >= recipe.steps
                if checkpoint:
                    checkpoints.save(checkpoint, network, kept, adam, counters, room)
        progress(counters.step, recipe.steps, counters.looks[-1].text)
        if counters.stopped:
            break
        await _step(engine, network, adam, batches, counters)
        counters.step += 1

    network.load_state_dict(kept)
    return Trained(network.table(means), counters.step, counters.best_step, tuple(counters.looks), resumed_at)


def _means(examples: Sequence[Example], clusters: int) -> Tensor:
    """Return the mean key of each cluster, (C, d), not normalised."""
    keys = np.stack([example.key for example in examples])
    owners = np.array([example.cluster for example in examples])
    return torch.from_numpy(np.stack([keys[owners == cluster].mean(axis=0) for cluster in range(clusters)]))


def _watched(examples: Sequence[Example]) -> list[Example]:
    """Return the examples whose answers are looked at: of each cluster in turn, the newest first."""
    turns: list[tuple[int, int, Example]] = []
    places: dict[int, int] = {}
    for number, example in enumerate(sorted(examples, key=lambda one: (-one.seen_at, one.id))):
        turn = places[example.cluster] = places.get(example.cluster, -1) + 1
        turns.append((turn, number, example))
    return [example for _, _, example in sorted(turns, key=lambda turn: turn[:2])[:MAX_WATCHED]]


class _Batches:
    """Seeded batches: which examples a step sees depends on seed and step only."""

    def __init__(self, examples: Sequence[Example], recipe: Recipe) -> None:
        self._examples, self._recipe = examples, recipe

    def at(self, step: int) -> list[Example]:
        size = min(self._recipe.batch, len(self._examples))
        return [self._one(step * size + offset) for offset in range(size)]

    def _one(self, position: int) -> Example:
        epoch, place = divmod(position, len(self._examples))
        order = np.random.default_rng((self._recipe.seed, epoch)).permutation(len(self._examples))
        return self._examples[int(order[place])]


async def _step(
    engine: Engine, network: LatentTable, adam: torch.optim.Adam, batches: _Batches, counters: Counters
) -> None:
    """Go one step up the likelihood of the labels."""
    batch = batches.at(counters.step)
    keys = torch.from_numpy(np.stack([example.key for example in batch]))
    latents = network(keys, torch.tensor([example.cluster for example in batch]))  # (B, L, d)
    rise = await engine.latent_gradient(
        [SteeredPrompt(e.prompt, latent.detach()) for e, latent in zip(batch, latents, strict=True)],
        [example.label for example in batch],
        [example.weight for example in batch],
    )
    slope = -rise.gradient / len(batch)  # of the loss
    if not bool(torch.isfinite(slope).all()):
        counters.skipped += 1
        logger.warning("step %d gave a gradient that is not finite and is left out", counters.step)
        if counters.skipped >= MAX_SKIPPED:
            raise TrainingDivergedError(f"gradients were not finite {MAX_SKIPPED} steps in a row")
        return
    counters.skipped = 0
    adam.zero_grad()
    latents.backward(slope)
    adam.step()


def _note(counters: Counters, values: np.ndarray | None) -> bool:
    """Record the outcomes of one look, (n,), None: not finite; return whether its weights are to be kept."""
    mean = float(values.mean()) if values is not None else None
    counters.looks.append(Look(counters.step, mean))
    if values is None or mean is None:
        counters.stale += 1
        return False
    best = np.array(counters.best_values)
    if not len(best) or mean >= float(best.mean()):
        counters.best_values, counters.stale = values.tolist(), 0
        return True
    difference = values - best
    error = float(difference.std(ddof=1)) / math.sqrt(len(best)) if len(best) > 1 else math.inf
    worse = float(difference.mean()) < -max(CLEARLY * error, ROUNDING)
    counters.stale = counters.stale + 1 if worse else 0
    return False


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _fingerprint(network: nn.Module, examples: Sequence[Example], recipe: Recipe) -> str:
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for part in _identities(network, examples):
        digest.update(part)
    return digest.hexdigest()[:16]


def _identities(network: nn.Module, examples: Sequence[Example]) -> Iterator[bytes]:
    for example in examples:
        # Of probabilities the first digits: another processor gives others.
        label = [
            (a, round(p, 2)) for a, p in zip(example.label.answers, example.label.probabilities, strict=True)
        ]
        yield f"{example.id} {example.digest} {example.cluster} {label}".encode()
    for name, value in network.state_dict().items():
        yield name.encode() + value.detach().cpu().numpy().tobytes()
