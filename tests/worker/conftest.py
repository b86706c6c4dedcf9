"""Episodes, nights and a place for them that the worker's tests share."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from config.settings import Settings
from memory.episode import Array, Episode
from memory.night import NightLog, NightRecord
from memory.registry import PriorRegistry
from memory.snapshot import write_snapshot
from memory.state import State
from model.engine import Decoding, SteeredPrompt
from model.transformers_engine import TransformersEngine
from tests.scripted_engine import CLOSE, ScriptedEngine
from tests.worker.real_episodes import real_episodes

TOPICS = ("sums", "poems", "news")


def scripted_episodes(
    engine: ScriptedEngine,
    count: int = 40,
    *,
    answer: str | None = None,
    progress: float = 0.6,
    start: int = 0,
) -> list[Episode]:
    """Return episodes of three topics whose latents stand at `progress` of the way to the best one.

    Their answers are those that the engine gives under the best latent, or all are `answer`.
    """
    prompts = [
        engine.render([{"role": "user", "content": f"{TOPICS[number % 3]} question number {number}"}])
        for number in range(start, start + count)
    ]
    keys = asyncio.run(engine.keys(prompts)).numpy()
    neutral = engine.neutral_latent()
    best = [SteeredPrompt(prompt, engine.best_latent(prompt)) for prompt in prompts]
    texts = [
        found.text if answer is None else answer
        for found in asyncio.run(ScriptedEngine.generate(engine, best, Decoding(max_tokens=64)))
    ]
    return [
        Episode(
            space=engine.space.id,
            key=key,
            latent=(neutral + progress * (engine.best_latent(prompt) - neutral)).numpy(),
            reward=0.9,
            signals={"consistency": 0.9},
            prompt_token_ids=prompt,
            answer_token_ids=(*text.encode(), CLOSE),
            prompt_text=engine.decode(prompt),
            answer_text=text,
            plain_reward=0.4,
        )
        for prompt, key, text in zip(prompts, keys, texts, strict=True)
    ]


def keyed(key: Array, prompt: Sequence[int], *, reward: float = 0.8) -> Episode:
    """Return an episode of which only key, prompt and reward matter."""
    return Episode(
        space="space",
        key=key / np.linalg.norm(key),
        latent=np.zeros((2, len(key)), np.float32),
        reward=reward,
        signals={},
        prompt_token_ids=tuple(prompt),
        answer_token_ids=(1,),
        prompt_text="",
        answer_text="",
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Scripted tensors are tiny: on a busy machine, threads that wait for each other cost ten times more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@dataclass(frozen=True)
class Place:
    """A data directory as the gateway leaves it to the worker."""

    settings: Settings
    space: str

    @cached_property
    def state(self) -> State:
        return State.open(self.settings)

    @property
    def log(self) -> NightLog:
        return NightLog(self.state)

    @property
    def registry(self) -> PriorRegistry:
        return PriorRegistry(self.settings.data_dir / "priors", self.space, self.state)

    def queue(self, episodes: Sequence[Episode]) -> NightRecord:
        """Create a night on these episodes, as the gateway does."""
        record = self.log.create(self.space, "api")
        write_snapshot(episodes, self.settings.data_dir / "snapshots" / record.id)
        return record


@pytest.fixture(scope="session")
def real_engine(small_model: str) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(small_model, length=16, placement="user_turn_end")
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def remembered(real_engine: TransformersEngine) -> list[Episode]:
    """Episodes of the real small model."""
    return real_episodes(real_engine)


@pytest.fixture
def place(tmp_path: Path, engine: ScriptedEngine) -> Place:
    return Place(Settings(data_dir=tmp_path, night_steps=40, _env_file=None), engine.space.id)
