"""The ways to learn from a night's answers, trained and asked.

Owns their order, what of them is kept on disk, and how each answers. Knows nothing of tables.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bench.bounds.adapters import Adapter, KvPrefix, Lora
from bench.bounds.fit import answer, fit
from bench.bounds.labels import Labelled, of_night, with_gold
from bench.stream.arms import Reply, decoded, reply_of
from bench.stream.journal import Journal
from bench.stream.loop import Loop
from bench.stream.questions import STREAM, Questions
from bench.stream.runner import Progress, duration, row_of
from bench.stream.score import Scorer
from cli.demonstration.stream import Item
from memory.atomic import write_file
from model.engine import SteeredPrompt
from model.transformers_engine import TransformersEngine
from server.steering.prompt import RenderedPrompt
from worker.train import Recipe, train

LATENT, LORA, KV = "latent", "lora", "kv"
WAYS = (LATENT, LORA, KV)
GOLD = "+gold"
"""Ends the names of arms that learned from right labels."""
CHUNK = 32
"""Questions between two writes of rows."""

Answer = Callable[[Sequence[RenderedPrompt]], Awaitable[list[Reply]]]


@dataclass(frozen=True)
class Bounds:
    """One seed's measurement; rows that the journal has are not made again.

    Args:
        loop: Of the seed, with all that it remembers.
        folder: Of what was trained.
        stage: The night.
        rank: Of the low-rank update.
        passes: Times that adapters see each example.
    """

    loop: Loop
    engine: TransformersEngine
    journal: Journal
    folder: Path
    seed: int
    stage: str
    rank: int
    passes: int
    progress: Progress

    async def run(self, learned: Sequence[Item], held_out: Sequence[Questions], scorer: Scorer) -> None:
        """Train on what the night kept of these questions, and ask what is held out.

        Raises:
            CommandError: there is nothing to train on.
        """
        night, known = await of_night(self.loop, learned, scorer)
        latents = await self._latents(LATENT, night)
        await self._ask(LATENT, held_out, self._under(latents, night))
        for way in (LORA, KV):
            await self._adapted(way, way, night, held_out)
        if all(self._done(f"{way}{GOLD}", held_out) for way in WAYS):
            return
        self.progress(f"{self.stage} gold", 0, 1, "looking for right answers")
        gold = await with_gold(self.engine, night, known, scorer, latents, self.seed)
        self.progress(f"{self.stage} gold", 1, 1, f"{len(gold.examples)} of {len(night.examples)} questions")
        latents = await self._latents(f"{LATENT}{GOLD}", gold)
        await self._ask(f"{LATENT}{GOLD}", held_out, self._under(latents, gold))
        for way in (LORA, KV):
            await self._adapted(way, f"{way}{GOLD}", gold, held_out)

    async def _latents(self, name: str, data: Labelled) -> torch.Tensor:
        """Return the latents, (C, L, d), that a night trains on these labels."""
        path = self._path(name)
        if not path.exists():
            found = await train(
                self.engine,
                data.dataset,
                data.fold,
                Recipe.of(self.loop.settings, len(data.fold.train)),
                checkpoint=path.with_suffix(".checkpoint"),
                progress=self._training(name),
            )
            self._keep(name, {"latents": found.latents}, data)
            path.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_file(path)["latents"]

    def _under(self, latents: torch.Tensor, data: Labelled) -> Answer:
        """Answer under the latent of the cluster whose keys are nearest, whatever the evidence."""
        clusters = range(data.dataset.clusters)
        means = [
            data.dataset.keys(data.dataset.of(cluster, data.fold.train)).mean(axis=0) for cluster in clusters
        ]
        directions = np.stack([mean / np.linalg.norm(mean) for mean in means])  # (C, d)

        async def ask(prompts: Sequence[RenderedPrompt]) -> list[Reply]:
            keys = (await self.engine.keys([prompt.token_ids for prompt in prompts])).numpy()
            nearest = (keys @ directions.T).argmax(axis=1)
            return await decoded(self.loop, prompts, [latents[int(at)] for at in nearest])

        return ask

    async def _adapted(self, way: str, name: str, data: Labelled, held_out: Sequence[Questions]) -> None:
        if self._done(name, held_out):
            return
        model = self.engine.model
        adapter: Adapter
        if way == LORA:
            adapter = Lora(model.network, self.rank, self.seed)
        else:
            adapter = KvPrefix(model.network, model.neutral_latent())
        path = self._path(name)
        if path.exists():
            with torch.no_grad():
                for key, value in load_file(path).items():
                    adapter.tensors()[key].copy_(value)
        else:
            await asyncio.to_thread(
                fit, model, adapter, data.examples, self.passes, self.seed, self._training(name)
            )
            self._keep(name, {key: value.detach() for key, value in adapter.tensors().items()}, data)

        async def ask(prompts: Sequence[RenderedPrompt]) -> list[Reply]:
            tokens = [prompt.token_ids for prompt in prompts]
            found = await asyncio.to_thread(answer, model, adapter, tokens, [p.decoding for p in prompts])
            replies = [reply_of(one, SteeredPrompt(some)) for one, some in zip(found, tokens, strict=True)]
            return [replace(reply, forward=reply.forward + len(adapter.prefix)) for reply in replies]

        await self._ask(name, held_out, ask)

    async def _ask(self, name: str, held_out: Sequence[Questions], ask: Answer) -> None:
        for questions in held_out:
            arm = _arm(name, questions)
            todo = [item for item in questions.items if not self._has(arm, item.question)]
            for start in range(0, len(todo), CHUNK):
                some = todo[start : start + CHUNK]
                done = len(questions.items) - len(todo) + start
                self.progress(f"{self.stage} {name}", done, len(questions.items), questions.name)
                replies = await ask([self.loop.render(item) for item in some])
                self.journal.add(
                    {
                        "seed": self.seed,
                        "stage": self.stage,
                        "set": questions.name,
                        "arm": arm,
                        "question": item.question,
                        **row_of(reply, item, questions.scorer),
                        "wall_s": None,
                    }
                    for item, reply in zip(some, replies, strict=True)
                )
            self.progress(f"{self.stage} {name}", len(questions.items), len(questions.items), questions.name)

    def _training(self, name: str) -> Callable[[int, int, str], None]:
        """Show the steps of a training, and how long the rest of them will take."""
        began: list[tuple[float, int]] = []

        def tell(done: int, total: int, message: str) -> None:
            if not began:
                began.append((time.monotonic(), done))
            since, first = began[0]
            left = ""
            if done > first:
                each = (time.monotonic() - since) / (done - first)
                left = f"; {duration(each * (total - done))} left of this training"
            self.progress(f"{self.stage} {name} training", done, total, f"{message}{left}")

        return tell

    def _keep(self, name: str, tensors: dict[str, torch.Tensor], data: Labelled) -> None:
        """Keep a row of what was trained on, then what was trained."""
        whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
        right, labels = data.right_share
        if not self._has("training", name):
            row = {"seed": self.seed, "stage": self.stage, "arm": "training", "question": name}
            values = sum(value.numel() for value in whole.values())
            self.journal.add([row | {"labels": labels, "labels_right": right, "values": values}])
        write_file(self._path(name), lambda path: save_file(whole, path))

    def _path(self, name: str) -> Path:
        return self.folder / f"seed-{self.seed}-{self.stage}-{name}.safetensors"

    def _has(self, arm: str, question: str) -> bool:
        return self.journal.has(self.seed, self.stage, arm, question)

    def _done(self, name: str, held_out: Sequence[Questions]) -> bool:
        return all(self._has(_arm(name, part), item.question) for part, item in _items(held_out))


def _arm(name: str, questions: Questions) -> str:
    return name if questions.name == STREAM else f"{name}@{questions.name}"


def _items(held_out: Sequence[Questions]) -> Iterator[tuple[Questions, Item]]:
    return ((part, item) for part in held_out for item in part.items)
