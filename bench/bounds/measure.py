"""The ways to learn from a stream's days, trained and asked.

Owns what each is trained on and how, what is kept on disk, and how each answers. Knows nothing of tables.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bench.bounds.adapters import Adapter, KvPrefix, Lora, SoftPrompt
from bench.bounds.fit import Rise, answer, fit
from bench.bounds.labels import Labelled, of_night, with_gold
from bench.bounds.teach import by_certainty, by_labels, by_majority
from bench.stream.arms import decoded
from bench.stream.journal import Journal
from bench.stream.loop import Loop
from bench.stream.questions import STREAM, Questions, Scorer
from bench.stream.reply import Reply, reply_of
from bench.stream.runner import Progress, duration, row_of
from cli.demonstration.stream import Item
from memory.atomic import write_file
from model.engine import SteeredPrompt
from model.transformers_engine import TransformersEngine
from server.steering.prompt import RenderedPrompt
from worker.train import MAX_WATCHED, Recipe, train

LATENT, LORA, KV, TTSV, TTRL, GOLD = "latent", "lora", "kv", "ttsv", "ttrl", "latent+gold"
WAYS = (LATENT, LORA, KV, TTSV, TTRL, GOLD)
REWARDED_RATE = 3e-4
"""Learning rate of a low-rank update that rewards teach: they are noisier than labels."""
BATCH, CERTAIN_BATCH = 4, 8
"""Of a step; TTSV's is the published one."""
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
        ways: Of `WAYS`, what is trained.
        rank: Of the low-rank update.
        passes: Times that adapters see each question.
    """

    loop: Loop
    engine: TransformersEngine
    journal: Journal
    folder: Path
    seed: int
    stage: str
    ways: Sequence[str]
    rank: int
    passes: int
    progress: Progress

    async def run(self, learned: Sequence[Item], held_out: Sequence[Questions], scorer: Scorer) -> None:
        """Train on what the night kept of these questions, and ask what is held out.

        Raises:
            CommandError: there is nothing to train on.
        """
        todo = [way for way in self.ways if not self._done(way, held_out)]
        if not todo:
            return
        prompts = list(map(self.loop.render, learned))
        for way in [way for way in todo if way in (TTSV, TTRL)]:
            await self._ask(way, held_out, await self._published(way, prompts))
        taught = [way for way in todo if way not in (TTSV, TTRL)]
        if not taught:
            return
        night, known = await of_night(self.loop, learned, scorer)
        for way in taught:
            data = await self._gold(night, known, scorer) if way == GOLD else night
            await self._ask(way, held_out, await self._taught(way, data))

    async def _gold(self, night: Labelled, known: dict[str, Item], scorer: Scorer) -> Labelled:
        latents = await self._latents(LATENT, night)
        self.progress(f"{self.stage} gold", 0, 1, "looking for right answers")
        gold = await with_gold(self.engine, night, known, scorer, latents, self.seed)
        self.progress(f"{self.stage} gold", 1, 1, f"{len(gold.examples)} of {len(night.examples)} questions")
        return gold

    async def _taught(self, way: str, data: Labelled) -> Answer:
        """Train a way on labels, and return how it answers."""
        if way in (LATENT, GOLD):
            return self._under(await self._latents(way, data), data)
        model = self.engine.model
        adapter: Adapter
        if way == LORA:
            adapter = Lora(model.network, self.rank, self.seed)
        else:
            adapter = KvPrefix(model.network, model.neutral_latent())
        rise = by_labels(model, adapter, data.examples)
        await self._fit(way, adapter, rise, len(data.examples), BATCH, "log-likelihood", data.right_share)
        return self._with(adapter)

    async def _published(self, way: str, prompts: Sequence[RenderedPrompt]) -> Answer:
        """Train as a published method does, on the questions alone, and return how it answers."""
        model = self.engine.model
        if way == TTSV:
            rows = SoftPrompt(model.neutral_latent())
            certain = by_certainty(model, rows, prompts)
            await self._fit(way, rows, certain, len(prompts), CERTAIN_BATCH, "entropy", None)
            return self._with(rows)
        update = Lora(model.network, self.rank, self.seed)
        update.learning_rate = REWARDED_RATE
        rewarded = by_majority(model, update, prompts, self.seed)
        await self._fit(way, update, rewarded, len(prompts), BATCH, "agreement", None)
        return self._with(update)

    async def _latents(self, name: str, data: Labelled) -> torch.Tensor:
        """Return the latents, (C, L, d), that a night trains on these labels."""
        path = self._path(name)
        if not path.exists():
            recipe = Recipe.of(self.loop.settings, len(data.fold.train))
            found = await train(
                self.engine,
                data.dataset,
                data.fold,
                recipe,
                checkpoint=path.with_suffix(".checkpoint"),
                progress=self._training(name),
            )
            before = fmean(self.engine.position(one.prompt) for one in data.examples)
            whole = fmean(len(one.prompt) + len(one.label.answers[0]) for one in data.examples)
            whole += self.engine.space.length
            looked = len(found.looks) * min(len(data.examples), MAX_WATCHED)
            # What stands before a latent is read without gradient.
            stepped = found.steps * recipe.batch * (before + 3 * (whole - before))
            forward = round(stepped + looked * whole)
            self._keep(name, {"latents": found.latents}, data.right_share, forward)
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

    async def _fit(
        self,
        name: str,
        adapter: Adapter,
        rise: Rise,
        count: int,
        batch: int,
        what: str,
        labels: tuple[int, int] | None,
    ) -> None:
        """Train an adapter, or take it as it was trained."""
        path = self._path(name)
        if path.exists():
            with torch.no_grad():
                for key, value in load_file(path).items():
                    adapter.tensors()[key].copy_(value)
            return
        tell = self._training(name)
        told = await asyncio.to_thread(
            fit,
            adapter,
            rise,
            count,
            passes=self.passes,
            batch=batch,
            seed=self.seed,
            progress=lambda done, total, value: tell(done, total, f"{what} {value}"),
        )
        tensors = {key: value.detach() for key, value in adapter.tensors().items()}
        self._keep(name, tensors, labels, sum(one.forward for one in told))

    def _with(self, adapter: Adapter) -> Answer:
        """Answer with an adapter."""

        def decoded_with(prompts: Sequence[RenderedPrompt]) -> list[Reply]:
            tokens = [prompt.token_ids for prompt in prompts]
            with adapter.attached():
                found = answer(self.engine.model, adapter, tokens, [prompt.decoding for prompt in prompts])
            replies = [reply_of(one, SteeredPrompt(some)) for one, some in zip(found, tokens, strict=True)]
            return [replace(reply, forward=reply.forward + adapter.before) for reply in replies]

        return lambda prompts: asyncio.to_thread(decoded_with, prompts)

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

    def _keep(
        self, name: str, tensors: dict[str, torch.Tensor], labels: tuple[int, int] | None, forward: int
    ) -> None:
        """Keep a row of what was trained on, right labels of how many, then what was trained."""
        whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
        if not self._has("training", name):
            row = {"seed": self.seed, "stage": self.stage, "arm": "training", "question": name}
            row |= {"values": sum(value.numel() for value in whole.values()), "forward": forward}
            if labels is not None:
                row |= {"labels_right": labels[0], "labels": labels[1]}
            self.journal.add([row])
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
