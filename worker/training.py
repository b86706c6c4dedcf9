"""Training of the latent prior: the nighttime scaling of LatentEvolve (arXiv 2509.24771).

Owns the two objectives, the weights of episodes, batches and early stopping. Knows a model only as an
`Engine` that gives likelihoods and gradients of latents; knows nothing of gates or registries.

With keys e_b, remembered answers y_b, remembered latents z*_b and weights w_b, the loss of a batch is

    replay   −mean_b w_b · likelihood of y_b under W(e_b), as `worker/replay.py` measures it
    regress   mean_b w_b · ‖W(e_b) − z*_b‖² / spread

where the spread is the mean of ‖z* − z_neutral‖² over the training episodes, which makes the second
term 1 at the neutral start, whatever the scale of the model's embeddings. Only latents that earned their
place are regressed on; the other episodes are replayed.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from memory.chains import chains
from memory.episode import Episode
from memory.free_space import UNLIMITED, FreeSpace
from memory.prior import KIND_COSINE, kind_means
from model.engine import Engine
from worker import checkpoint as checkpoints
from worker.agreement import greedy_agreement
from worker.checkpoint import Counters, Evaluation
from worker.errors import TrainingDivergedError
from worker.neighbourhood import prompt_digest, stack_keys
from worker.replay import gradients, likelihoods

if TYPE_CHECKING:  # so that training itself runs where there is torch, and little else
    from config.settings import Settings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is going on)."""

REGRESS_SHARE = 0.1
"""Weight of `regress` beside `replay` in objective `both`: refined latents are noisy, and pulled at
harder they hold the prior where the day's search happened to end."""

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""

LATER_PEAK = 0.25
"""Highest rate of a night that goes on from an earlier prior, as a share of the learning rate (ADR 0015)."""

MOST_PASSES = 12
"""Times that one night may see each episode: a few dozen answers are soon learned by heart (ADR 0014)."""

LOOK_EVERY = 10
"""Steps between two looks at what the weights are worth; of long trainings a tenth of the steps."""
PATIENCE = 4
"""Looks in a row that are clearly worse than the best one, after which training stops."""
CLEARLY = 2.0
"""Standard errors: with one, three validation answers that moved together by chance undid later weights."""
ROUNDING = 1e-4
"""Least fall of the mean likelihood that can count as worse."""

MAX_SKIPPED = 3
_COUNTERS = "agreement"
"""What the counters of a checkpoint mean: those of earlier builds are not gone on from."""
MAX_WATCHED = 32
"""Most episodes whose answers are decoded, or whose likelihood is measured, at one look."""
_LIKELIHOODS_PER_CALL = 8


@dataclass(frozen=True)
class Recipe:
    """How one prior is trained; what a night takes unless told otherwise stands in `config/settings.py`."""

    objective: Literal["replay", "regress", "both"]
    steps: int
    batch: int
    learning_rate: float = 2e-3
    seed: int = 0
    goes_on: bool = False
    """Whether the prior has been trained before: then the rate rises over the first tenth of the steps and
    falls to zero along a cosine. From the neutral start it stays as it is: there is far to go (ADR 0012)."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step in [0, steps).

        At the full rate a prior that has been trained before is thrown off its place, by steps as large as
        the rate whatever the gradient; with a smaller one that falls, it finds one again (ADR 0012, 0015).
        """
        if not self.goes_on:
            return self.learning_rate
        peak = LATER_PEAK * self.learning_rate
        warm_up = max(round(WARM_UP * self.steps), 2)
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return peak * (1 + math.cos(math.pi * (step - warm_up) / (self.steps - warm_up))) / 2

    def looks_at(self, step: int) -> bool:
        """Return whether the weights are looked at after so many steps."""
        return step % max(LOOK_EVERY, self.steps // 10) == 0 or step == self.steps

    @classmethod
    def of(cls, settings: "Settings", size: int, *, goes_on: bool) -> "Recipe":
        """Return the recipe that the settings name, with `MOST_PASSES` at most over `size` episodes."""
        return cls(
            settings.night_objective,
            min(settings.night_steps, MOST_PASSES * size // min(settings.night_batch, size)),
            settings.night_batch,
            settings.night_learning_rate,
            settings.night_seed,
            goes_on,
        )


@dataclass(frozen=True)
class Trained:
    """What came of a training; the network holds the weights that were kept."""

    steps: int
    best_step: int
    """Whose weights were kept."""
    evaluations: tuple[Evaluation, ...]
    resumed_at: int
    """Step that a checkpoint let this run begin at; 0: from the start."""


def episode_weights(episodes: Sequence[Episode]) -> torch.Tensor:
    """Return (N,) weights of mean 1: reward plus what it gained over the unsteered answer."""
    raw = torch.tensor([e.reward + max(e.reward - e.plain_reward, 0.0) for e in episodes])
    raw = raw.clamp_min(1e-6)
    return raw / raw.mean()


async def train(
    engine: Engine,
    network: nn.Module,
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    room: FreeSpace = UNLIMITED,
    progress: Progress = lambda done, total, message: None,
) -> Trained:
    """Train `network`, (B, d) → (B, L, d), in place and leave the weights in it that are kept.

    Every `LOOK_EVERY` steps greedy answers to prompts of `validation`, and of `episodes` where these are few,
    are compared with the remembered ones. The weights whose answers agree most are kept, of equals the latest
    (ADR 0023). An engine that does not generate leaves the likelihood of `validation` to choose by:
    the latest weights where it is not clearly worse than the best, and of a prior that goes on only the first
    ones or the last (ADR 0009, 0015).

    Training stops when what it is watched by has been clearly worse, by `CLEARLY` standard errors, for some
    evaluations, but where it goes on from an earlier prior: there the rate falls, and what was lost comes
    back. With `checkpoint`, goes on from there; the result is that of an uninterrupted run, but for rounding.

    Raises:
        TrainingDivergedError: gradients were not finite several steps in a row.
        EngineError: the engine failed.
    """
    adam = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    batches = _Batches(engine, episodes, recipe)
    watch = _Watch(engine, episodes, validation)
    counters = Counters(_fingerprint(network, episodes, validation, recipe))
    kept = _copy(network)
    restored = checkpoints.restore(checkpoint, network, adam, counters.fingerprint) if checkpoint else None
    if restored:
        counters, kept = restored
        logger.info("training goes on at step %d of %d", counters.step, recipe.steps)
    resumed_at = counters.step

    while True:
        if not counters.stopped and recipe.looks_at(counters.step):
            known = counters.evaluations and counters.evaluations[-1].step == counters.step
            if not known:  # a checkpoint is written after the evaluation of its step
                if _note(counters, await watch.look(network), recipe):
                    kept, counters.best_step = _copy(network), counters.step
                ended = counters.stale >= PATIENCE and not recipe.goes_on
                counters.stopped = ended or counters.step >= recipe.steps
                if checkpoint:
                    checkpoints.save(checkpoint, network, kept, adam, counters, room)
        progress(counters.step, recipe.steps, counters.evaluations[-1].text)
        if counters.stopped:
            break
        await _step(engine, network, adam, batches, counters)
        counters.step += 1

    network.load_state_dict(kept)
    return Trained(counters.step, counters.best_step, tuple(counters.evaluations), resumed_at)


@dataclass(frozen=True)
class _Look:
    """What one look at the weights saw."""

    likelihoods: torch.Tensor
    """(N,), of the validation episodes; -inf where latents are not finite."""
    agreement: torch.Tensor | None
    """(M,), of the watched ones; None: the engine does not generate, or something is not finite."""


class _Watch:
    """Measures weights on episodes, asked much as the prior will be: with the mean of their kind."""

    def __init__(self, engine: Engine, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        self._engine = engine
        self._validation = list(validation)[:MAX_WATCHED]
        self._watched = _watched(train, validation)
        everything = stack_keys([*self._validation, *self._watched])
        asked = torch.from_numpy(kind_means(stack_keys(train), everything))
        count = len(self._validation)
        self._validation_keys, self._watched_keys = asked[:count], asked[count:]  # (N, d), (M, d)

    async def look(self, network: nn.Module) -> _Look:
        with torch.no_grad():
            latents, watched = network(self._validation_keys), network(self._watched_keys)  # (…, L, d)
        if not bool(torch.isfinite(latents).all() and torch.isfinite(watched).all()):
            return _Look(torch.full((len(latents),), -math.inf), None)
        values: list[torch.Tensor] = []
        for start in range(0, len(latents), _LIKELIHOODS_PER_CALL):
            part = slice(start, start + _LIKELIHOODS_PER_CALL)
            values.append(await likelihoods(self._engine, self._validation[part], list(latents[part])))
        found = torch.cat(values)
        if not bool(torch.isfinite(found).all()):
            return _Look(found, None)
        decoded = await greedy_agreement(self._engine, self._watched, list(watched))
        return _Look(found, None if decoded is None else torch.from_numpy(decoded))


def _watched(train: Sequence[Episode], validation: Sequence[Episode]) -> list[Episode]:
    """Return the episodes whose answers are looked at: of each kind of task in turn, those for validation
    first, then the newest that train, which an earlier prior has not learned from."""
    ordered = [*validation, *sorted(train, key=lambda episode: episode.created_at, reverse=True)]
    kinds = chains(stack_keys(ordered), KIND_COSINE)
    turns = sorted((turn, index) for kind in kinds for turn, index in enumerate(kind))
    return [ordered[index] for _, index in turns[:MAX_WATCHED]]


class _Batches:
    """Seeded batches: which episodes a step sees depends on seed and step only."""

    def __init__(self, engine: Engine, episodes: Sequence[Episode], recipe: Recipe) -> None:
        self.episodes, self.recipe = episodes, recipe
        self.keys = torch.from_numpy(stack_keys(episodes))  # (N, d)
        self.latents = torch.from_numpy(np.stack([e.latent for e in episodes]).astype(np.float32))
        self.weights = episode_weights(episodes)
        self.earned = torch.tensor([float(episode.latent_earned) for episode in episodes])  # (N,)
        offsets = (self.latents - engine.neutral_latent())[self.earned > 0]
        self.spread = max(float(offsets.square().sum(dim=(1, 2)).mean()), 1e-12) if len(offsets) else 1.0

    def indices(self, step: int) -> list[int]:
        size = min(self.recipe.batch, len(self.episodes))
        return [self._at(step * size + offset) for offset in range(size)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.episodes))
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.episodes))
        return int(order[place])


async def _step(
    engine: Engine, network: nn.Module, adam: torch.optim.Adam, batches: _Batches, counters: Counters
) -> None:
    chosen = batches.indices(counters.step)
    episodes = [batches.episodes[index] for index in chosen]
    weights = batches.weights[chosen]  # (B,)
    objective = batches.recipe.objective
    latents = network(batches.keys[chosen])  # (B, L, d)
    slope = torch.zeros_like(latents)  # of the loss
    if objective != "regress":
        rise = await gradients(engine, episodes, latents.detach(), weights)
        slope -= rise.gradient / len(chosen)
    if objective != "replay":
        share = 1.0 if objective == "regress" else REGRESS_SHARE
        error = latents.detach() - batches.latents[chosen]
        pull = weights * batches.earned[chosen]  # (B,)
        slope += share * 2 * pull[:, None, None] * error / (batches.spread * len(chosen))
    if not bool(torch.isfinite(slope).all()):
        counters.skipped += 1
        logger.warning("step %d gave a gradient that is not finite and is left out", counters.step)
        if counters.skipped >= MAX_SKIPPED:
            raise TrainingDivergedError(f"gradients were not finite {MAX_SKIPPED} steps in a row")
        return
    counters.skipped = 0
    for group in adam.param_groups:
        group["lr"] = batches.recipe.rate(counters.step)
    adam.zero_grad()
    latents.backward(slope)
    adam.step()


def _note(counters: Counters, look: _Look, recipe: Recipe) -> bool:
    """Record what was seen and return whether these weights are to be kept.

    By agreement they are unless earlier ones agree more. By likelihood they are unless they are clearly worse
    than the best ones, by `CLEARLY` standard errors of the paired difference: a plateau is no reason to stop,
    for it hid the steps in which greedy answers took on their form. There, where training goes on from an
    earlier prior, the best ones are that prior's.
    """
    decoded = look.agreement is not None
    values = look.likelihoods if look.agreement is None else look.agreement
    mean = float(values.mean())
    best = torch.tensor(counters.best_values, dtype=values.dtype)
    worse = not math.isfinite(mean)
    if len(best) and not worse:
        difference = values - best
        error = float(difference.std()) / math.sqrt(len(best)) if len(best) > 1 else math.inf
        worse = float(difference.mean()) < -max(CLEARLY * error, ROUNDING)
    highest = not worse and (not len(best) or mean >= float(best.mean()))
    if highest and (decoded or not len(best) or not recipe.goes_on):
        counters.best_values = values.tolist()
    counters.stale = counters.stale + 1 if worse else 0
    likelihood = float(look.likelihoods.mean())
    counters.evaluations.append(
        Evaluation(
            counters.step, likelihood if math.isfinite(likelihood) else None, mean if decoded else None
        )
    )
    if decoded:
        return highest
    return not worse and (not recipe.goes_on or counters.step in (0, recipe.steps))


def _copy(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _fingerprint(
    network: nn.Module, episodes: Sequence[Episode], validation: Sequence[Episode], recipe: Recipe
) -> str:
    digest = hashlib.sha256(json.dumps([_COUNTERS, asdict(recipe)], sort_keys=True).encode())
    for part in _identities(network, episodes, validation):
        digest.update(part)
    return digest.hexdigest()[:16]


def _identities(
    network: nn.Module, episodes: Sequence[Episode], validation: Sequence[Episode]
) -> Iterator[bytes]:
    for side in (episodes, validation):
        yield b"side"
        for episode in side:
            yield f"{episode.id} {prompt_digest(episode)}".encode()
    for name, value in network.state_dict().items():
        yield name.encode() + value.detach().cpu().numpy().tobytes()
