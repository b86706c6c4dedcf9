"""What one night learns from, and what judges it.

Owns the snapshot's way into examples: duplicates, clusters, labels, and which prompts judge a training that
has not seen them. All of it is decided once, here, with everything in view; whoever comes after takes the
`Dataset` and clusters nothing again.

Labels: where answers were held to choices, the model's own probabilities of the choices under no latent,
calibrated over the cluster (batch calibration, arXiv 2309.17249); elsewhere the remembered answer, which
is what most samples of the day agreed on. A verifier's word stands above both, and what people said of an
answer above that: what they called wrong is not learned.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memory.episode import FEEDBACK, GOOD, Array, Episode, prompt_digest
from memory.prior import CLUSTER_COSINE, Leanings, unit
from memory.snapshot import read_snapshot
from model.calibration import calibrated, choice_logits, label_of, leaning
from model.choice_trie import MOST_TEXT
from model.engine import Engine, Label, PlacementError, SteeredPrompt
from worker.chains import chains, first_of_alike
from worker.errors import SpaceMismatchError, TooFewEpisodesError

if TYPE_CHECKING:  # so that datasets are made where there is torch, and little else
    from config.settings import Settings

logger = logging.getLogger(__name__)

SAME_COSINE = 0.999
"""Keys this similar, with the same choices, are one prompt asked twice: the better answer stays."""

DUPLICATE_COSINES = (0.97, 0.98, 0.99, 0.995)
"""Tried in turn. Prompts that share a long instruction are similar however they differ, and with many of them
chains of near-duplicates swallow everything; then only closer ones count."""

FEWEST = 8
"""Fewest duplicate groups of a cluster that is learned: four judge what the other four taught."""

MOST = 1024
"""Most examples of one night, the newest of each cluster in turn: its steps would not see more. Of all other
episodes of a snapshot (`memory/snapshot.py` says how many) only the key is ever held."""

ENOUGH_TO_HOLD_OUT = 48
"""Groups held out from which on one training is judged by them; with fewer, halves judge each other."""

UNKNOWN = 4.0
"""How often each choice counts as known before anything is. Of 160 headlines, five that were checked:
labels are right as often on equally frequent classes as before, and on 85 % of one class 84 instead of 52
%; with one instead of four, the five cost twelve points on equal classes (docs/log.md)."""

VERIFIER = "verifier"
"""Signal of an answer that was checked."""


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt, and what it should be answered."""

    id: str
    """Of the episode."""
    digest: str
    """Sixteen hex digits that name the prompt by its tokens."""
    prompt: tuple[int, ...]
    key: Array
    """(d,), norm 1."""
    max_tokens: int | None
    label: Label
    """What it should be answered, the likeliest first."""
    answer: str
    """The likeliest answer as text."""
    held: tuple[float, ...]
    """Log-probability of each choice under no latent, drawn by a grammar, as by day; (): not known."""
    known: bool
    """Whether somebody, else a verifier, has called that answer right."""
    seen_at: float
    """When the prompt last came, seconds since 1970."""
    weight: float
    """Of its likelihood in training; 1 on average."""
    cluster: int = 0
    group: int = 0
    """Of near-duplicates, which count as one."""

    @property
    def choices(self) -> tuple[str, ...]:
        """What a grammar held the answer to; () for a free one."""
        return self.label.choices


@dataclass(frozen=True)
class Fold:
    """A training, and the prompts that judge it, which it has not seen. Numbers of examples."""

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """All of it."""

    examples: tuple[Example, ...]
    leanings: tuple[Leanings, ...]
    """Of each cluster."""
    folds: tuple[Fold, ...]
    """The last one's training is published. Small nights have three: two halves that judge each other, and
    all."""
    episodes: int
    """How many the snapshot held."""
    left_out: int
    """Of them: duplicates, clusters too small to learn, labels too unsure, and more than a night can use."""
    mean_latent: Array | None
    """(L, d) mean of the latents that earned their place; None: there are none."""
    duplicate_cosine: float
    """From which on keys counted as near-duplicates."""

    @property
    def clusters(self) -> int:
        """How many there are."""
        return len(self.leanings)

    def of(self, cluster: int, numbers: Iterable[int]) -> list[int]:
        """Return those of the examples' numbers that are of a cluster."""
        return [number for number in numbers if self.examples[number].cluster == cluster]

    def keys(self, numbers: Iterable[int]) -> Array:
        """Return keys of examples, (n, d)."""
        return np.stack([self.examples[number].key for number in numbers])


async def load_by_settings(snapshot: Path, engine: Engine, space: str, settings: "Settings") -> Dataset:
    """Return the dataset of a snapshot as the settings of a night ask for it; raises what `load` does."""
    return await load(
        snapshot,
        engine,
        space=space,
        min_reward=settings.night_min_reward,
        min_episodes=settings.night_min_episodes,
        holdout_share=settings.night_holdout,
        calibration=settings.night_calibration,
        seed=settings.night_seed,
    )


async def load(
    snapshot: Path,
    engine: Engine,
    *,
    space: str,
    min_reward: float,
    min_episodes: int,
    holdout_share: float,
    calibration: float,
    seed: int,
) -> Dataset:
    """Return the dataset of a snapshot, which is read twice: for the keys, and for what is chosen by them.

    Args:
        snapshot: folder of it.
        engine: the model, which tells what fits and scores choices.
        space: that the night is of.
        min_reward: least reward of an episode with a free answer.
        min_episodes: fewest that are worth a night.
        holdout_share: share of the groups that judges, in (0, 1), where they are many.
        calibration: λ of the calibration of choices, in [0, 1].
        seed: of the dealing.

    Raises:
        TooFewEpisodesError: too few, or too few different ones.
        SpaceMismatchError: episodes of another latent space than the engine's.
        SnapshotError, EngineError.
    """
    reader = _Reader(snapshot, engine, space, min_reward)
    candidates = reader.found()
    if len(candidates) < min_episodes:
        raise TooFewEpisodesError(
            f"{len(candidates)} episodes of reward {min_reward:g} or more; a night needs {min_episodes}"
        )
    different = _deduplicated(candidates)
    prompts = len({one.prompt for one in different})
    clustered = _clustered(different)
    if not clustered:
        raise TooFewEpisodesError(
            f"{prompts} different prompts, no {FEWEST} of one kind: that is the fewest to learn from"
        )
    labelled, leanings = await _labelled(engine, reader.examples(_newest(clustered, MOST)), calibration)
    examples, kept, cosine = _grouped(labelled)
    if not examples:
        raise TooFewEpisodesError(
            f"{prompts} different prompts, no {FEWEST} of one kind with a label that is sure enough"
        )
    return Dataset(
        tuple(examples),
        tuple(leanings.get(cluster, {}) for cluster in kept),
        _folds(examples, holdout_share, seed),
        episodes=reader.episodes,
        left_out=reader.episodes - len(examples),
        mean_latent=reader.mean_latent,
        duplicate_cosine=cosine,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """What decides whether a night learns from an episode."""

    id: str
    prompt: int
    """Hash of its tokens."""
    choices: int
    """Hash of what may be answered."""
    key: Array
    """(d,), norm 1."""
    told: bool
    """Whether somebody has called its answer right."""
    reward: float
    seen_at: float


class _Reader:
    """Reads a snapshot, one episode after the other."""

    def __init__(self, snapshot: Path, engine: Engine, space: str, min_reward: float) -> None:
        self._snapshot, self._engine = snapshot, engine
        self._space, self._min_reward = space, min_reward
        self.episodes = 0
        self._earned = 0
        self._sum: NDArray[np.float64] | None = None

    @property
    def mean_latent(self) -> Array | None:
        """(L, d) of all that was read and had earned its place."""
        return None if self._sum is None else (self._sum / self._earned).astype(np.float32)

    def found(self) -> list[_Found]:
        """Return what may be learned from."""
        return [
            _Found(
                episode.id,
                hash(episode.prompt_token_ids),
                hash(episode.choices),
                unit(episode.key[None])[0],
                episode.feedback is not None,
                episode.reward,
                episode.seen_last.timestamp(),
            )
            for episode in self._checked()
            if not episode.retracted
            and (episode.choices or episode.reward >= self._min_reward)
            and _fits(self._engine, episode)
        ]

    def examples(self, clusters: Mapping[str, int]) -> list[Example]:
        """Return examples with the remembered answer as their label, of episodes whose cluster is given."""
        chosen = [
            _example(self._engine, episode, clusters[episode.id])
            for episode in read_snapshot(self._snapshot)
            if episode.id in clusters
        ]
        return sorted(chosen, key=lambda example: (example.cluster, example.seen_at, example.id))

    def _checked(self) -> Iterator[Episode]:
        for episode in read_snapshot(self._snapshot):
            for named in (self._space, episode.space):
                if named != self._engine.space.id:
                    raise SpaceMismatchError(
                        f"the night is of space {named}, this worker's model makes"
                        f" {self._engine.space.id}: give worker and gateway the same model, latent length"
                        " and placement"
                    )
            episode.check(*self._engine.space.shape)
            self.episodes += 1
            if episode.latent_earned:
                latent = np.asarray(episode.latent, np.float64)
                self._sum = latent if self._sum is None else self._sum + latent
                self._earned += 1
            yield episode


def _example(engine: Engine, episode: Episode, cluster: int) -> Example:
    held = episode.answer_text in episode.choices
    # A choice as the grammar writes it, however it was split when it was decoded.
    tokens = engine.answer_tokens(episode.answer_text) if held else tuple(episode.answer_token_ids)
    return Example(
        id=episode.id,
        digest=prompt_digest(episode.prompt_token_ids),
        prompt=tuple(episode.prompt_token_ids),
        key=unit(episode.key[None])[0],
        max_tokens=episode.max_tokens,
        label=Label.of(tokens, episode.choices if held else ()),
        answer=episode.answer_text,
        held=episode.held_log_probabilities if held else (),
        known=episode.signals.get(FEEDBACK, episode.signals.get(VERIFIER, 0.0)) >= GOOD,
        seen_at=episode.seen_last.timestamp(),
        weight=episode.reward + max(episode.reward - episode.plain_reward, 0.0),
        cluster=cluster,
    )


def _fits(engine: Engine, episode: Episode) -> bool:
    """Whether the engine can be asked about this episode."""
    size = len(episode.prompt_token_ids) + engine.space.length + len(episode.answer_token_ids)
    if sum(map(len, episode.choices)) > MOST_TEXT:  # of another server's day: here they are not steered
        return False
    try:
        engine.position(episode.prompt_token_ids)
    except PlacementError:
        return False
    return size < engine.max_model_len


def _deduplicated(candidates: Sequence[_Found]) -> list[_Found]:
    """Return one episode per prompt and set of choices, oldest first.

    It is one that somebody called right, else the one of the best reward, then the newest.
    """
    best: dict[tuple[int, int], _Found] = {}
    for one in sorted(candidates, key=lambda one: (not one.told, -one.reward, -one.seen_at, one.id)):
        best.setdefault((one.prompt, one.choices), one)
    held: dict[int, list[_Found]] = {}
    for one in best.values():
        held.setdefault(one.choices, []).append(one)
    kept = [
        ranked[at]
        for ranked in held.values()
        for at in first_of_alike(np.stack([one.key for one in ranked]), SAME_COSINE)
    ]
    return sorted(kept, key=lambda one: (one.seen_at, one.id))


def _clustered(candidates: Sequence[_Found]) -> list[list[_Found]]:
    """Return the clusters that are large enough to be learned, the largest first."""
    linked = chains(np.stack([one.key for one in candidates]), CLUSTER_COSINE)
    large = sorted((cluster for cluster in linked if len(cluster) >= FEWEST), key=len, reverse=True)
    return [[candidates[at] for at in cluster] for cluster in large]


def _newest(clusters: Sequence[Sequence[_Found]], most: int) -> dict[str, int]:
    """Return ids of at most so many, the newest of each cluster in turn, and the number of their cluster."""
    turns = [
        (turn, number, one.id)
        for number, cluster in enumerate(clusters)
        for turn, one in enumerate(sorted(cluster, key=lambda one: (-one.seen_at, one.id)))
    ]
    return {episode_id: number for _, number, episode_id in sorted(turns)[:most]}


async def _labelled(
    engine: Engine, examples: Sequence[Example], calibration: float
) -> tuple[list[Example], Mapping[int, Leanings]]:
    """Return the examples with their final labels, and each cluster's leanings.

    Those held to choices of which nothing is sure are left out.
    """
    alike: dict[tuple[int, tuple[str, ...]], list[Example]] = {}
    leanings: dict[int, dict[tuple[str, ...], tuple[float, ...]]] = {}
    kept: list[Example] = []
    for example in examples:
        if example.choices:
            alike.setdefault((example.cluster, example.choices), []).append(example)
        else:
            kept.append(example)
    for (cluster, choices), group in alike.items():
        logits = await _held_logits(engine, group, choices)  # what a training can move
        leans = leaning(logits, calibration, _frequencies(group, choices))
        leanings.setdefault(cluster, {})[choices] = tuple(leans.tolist())
        for example, row in zip(group, calibrated(logits, leans), strict=True):
            label = label_of(engine, choices, row)
            if example.known:
                kept.append(example)
            elif label is not None:
                kept.append(replace(example, label=label, answer=choices[int(row.argmax())], weight=1.0))
    mean = math.fsum(example.weight for example in kept) / max(len(kept), 1)
    return [replace(example, weight=example.weight / mean) for example in kept], leanings


async def _held_logits(
    engine: Engine, examples: Sequence[Example], choices: tuple[str, ...]
) -> NDArray[np.float64]:
    """Return what each example's choices were by day, (n, choices); the engine is asked for others."""
    unknown = [at for at, example in enumerate(examples) if not example.held]
    prompts = [SteeredPrompt(examples[at].prompt) for at in unknown]
    asked = iter(await choice_logits(engine, prompts, choices, held=True) if prompts else ())
    return np.array([example.held or next(asked) for example in examples])


def _frequencies(examples: Sequence[Example], choices: Sequence[str]) -> NDArray[np.float64]:
    """Return how often each choice is right among those that are known, each counted `UNKNOWN` times more."""
    counts = np.full(len(choices), UNKNOWN)
    for example in examples:
        if example.known:
            counts[choices.index(example.answer)] += 1
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def _grouped(examples: Sequence[Example]) -> tuple[list[Example], list[int], float]:
    """Return the examples with their duplicate groups, the clusters that are left, and the cosine used."""
    kept: list[Example] = []
    clusters: list[int] = []
    groups, cosine = 0, DUPLICATE_COSINES[0]
    for number in sorted({example.cluster for example in examples}):
        members = [example for example in examples if example.cluster == number]
        if len(members) < FEWEST:
            continue
        keys = np.stack([example.key for example in members])
        for used in DUPLICATE_COSINES:
            linked = chains(keys, used)
            if len(linked) >= FEWEST and max(map(len, linked)) <= len(members) / 2:
                break
        if len(linked) < FEWEST:
            continue
        cosine = max(cosine, used)
        for group in linked:
            kept += [replace(members[at], cluster=len(clusters), group=groups) for at in group]
            groups += 1
        clusters.append(number)
    return kept, clusters, cosine


def _folds(examples: Sequence[Example], holdout_share: float, seed: int) -> tuple[Fold, ...]:
    """Deal whole groups, cluster by cluster, at random."""
    rng = np.random.default_rng(seed)
    by_cluster: dict[int, list[int]] = {}
    for example in examples:
        groups = by_cluster.setdefault(example.cluster, [])
        if example.group not in groups:
            groups.append(example.group)
    dealt = {cluster: list(rng.permutation(groups)) for cluster, groups in by_cluster.items()}
    everything = range(len(examples))

    def numbers(groups: set[int]) -> tuple[int, ...]:
        return tuple(at for at in everything if examples[at].group in groups)

    total = sum(map(len, dealt.values()))
    if holdout_share * total >= ENOUGH_TO_HOLD_OUT:
        held = {int(g) for groups in dealt.values() for g in groups[: math.ceil(holdout_share * len(groups))]}
        test = numbers(held)
        return (Fold("all", tuple(at for at in everything if at not in set(test)), test),)
    half = {int(g) for groups in dealt.values() for g in groups[: len(groups) // 2]}
    first = numbers(half)
    second = tuple(at for at in everything if at not in set(first))
    return (Fold("first", first, second), Fold("second", second, first), Fold("all", tuple(everything), ()))
