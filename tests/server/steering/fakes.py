"""What the tests of steering share: prompts, rewards and a store that can be away."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from config.settings import Effort, Settings
from memory.episode import Array, Episode, EpisodeRejectedError, StoreUnavailableError
from memory.free_space import NoRoomError
from memory.listing import Page, Place
from memory.store import EVERYWHERE, Neighbour, Outline, StoreStats, Where
from model.engine import Decoding, Generation
from server.steering.prompt import Options, RenderedPrompt
from tests.scripted_engine import GOOD, ScriptedEngine


def rendered(
    engine: ScriptedEngine,
    question: str = "apples How many?",
    *,
    max_tokens: int = 32,
    temperature: float = 0.0,
    rules: Mapping[str, Any] | None = None,
    choices: tuple[str, ...] = (),
) -> RenderedPrompt:
    tokens = engine.render([{"role": "user", "content": question}])
    decoding = Decoding(max_tokens=max_tokens, temperature=temperature, choices=choices or None)
    return RenderedPrompt(
        tokens,
        engine.decode(tokens),
        question,
        decoding,
        rules or {},
        scored_choices=choices,
        asked_tokens=max_tokens,
    )


def answer(text: str, *, cut: bool = False, logprobs: tuple[float, ...] = ()) -> Generation:
    return Generation(text, tuple(text.encode()), "length" if cut else "stop", logprobs)


def options(effort: Effort = "low", **changes: Any) -> Options:
    """Return what a request at an effort may do by the default settings, with some of it changed."""
    return replace(Options.of(Settings(_env_file=None), effort), **changes)


class GoodAnswers:
    """A reward that knows the scripted engine's good answers: 1 for them, 0 for the others."""

    name = "good"

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        return [float(given.text.startswith(GOOD)) for given in answers]


class ListStore:
    """An episode store in a list.

    `away`, `full` and `refuse` make it fail; `gate` holds writes up, `answers` everything.
    """

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.away = self.full = self.deletes_while_away = False
        self.refuse: set[str] = set()
        self.gate, self.answers = threading.Event(), threading.Event()
        self.gate.set()
        self.answers.set()
        self.asked = 0
        self.writes = 0
        self.recalls = 0

    def add(self, episodes: Sequence[Episode]) -> None:
        self.gate.wait(10)
        self._enter()
        if self.full:
            raise NoRoomError("episodes cannot be written")
        self.writes += 1
        for episode in episodes:
            if episode.id in self.refuse:
                raise EpisodeRejectedError("latent holds NaN or infinity")
        self.episodes += episodes

    def near(self, key: Array, *, tenant: str, k: int, floor: float) -> list[Neighbour]:
        self._enter()
        self.recalls += 1
        found = [
            Neighbour(
                e.id,
                float(np.dot(e.key, key)),
                e.latent_earned,
                e.start_lift,
                e.prior_version,
                e.choices,
                e.choice_log_probabilities,
                e.held_log_probabilities,
            )
            for e in self.episodes
            if e.tenant == tenant
        ]
        return sorted((one for one in found if one.similarity >= floor), key=lambda one: -one.similarity)[:k]

    def fetch(self, episode_ids: Sequence[str]) -> list[Episode]:
        return [episode for episode in self.episodes if episode.id in episode_ids]

    def get(self, episode_id: str) -> Episode | None:
        return next((episode for episode in self.episodes if episode.id == episode_id), None)

    def scroll(self, *, tenant: str | None = None, batch: int = 256) -> Iterator[Episode]:
        yield from self.episodes

    def outlines(self, where: Where = EVERYWHERE) -> Iterator[Outline]:
        for one in self.episodes:
            yield Outline(one.id, one.reward, bool(one.choices), one.seen, one.seen_last, one.created_at)

    def compact(self) -> bool:
        return False

    def page(self, where: Where, *, limit: int, after: Place | None = None) -> Page:
        raise NotImplementedError

    def delete(self, episode_ids: Sequence[str]) -> int:
        if not self.deletes_while_away:
            self._enter()
        before = len(self.episodes)
        self.episodes = [episode for episode in self.episodes if episode.id not in episode_ids]
        return before - len(self.episodes)

    def count(self, *, tenant: str | None = None, since: datetime | None = None) -> int:
        self._enter()
        return len(self.episodes)

    def stats(self, *, tenant: str | None = None) -> StoreStats:
        return StoreStats(len(self.episodes), len(self.episodes), None, (0,) * 10, None, None)

    def close(self) -> None:
        self.away = True

    def _enter(self) -> None:
        self.asked += 1
        self.answers.wait(30)
        if self.away:
            raise StoreUnavailableError("the store was taken away")
