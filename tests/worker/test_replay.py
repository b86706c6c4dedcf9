"""What replay asks of the engine."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from model.engine import Label, SteeredPrompt
from model.scripted_engine import ScriptedEngine
from tests.worker.conftest import scripted_episodes
from worker.replay import gradients, likelihoods

KINDS = ("fruit", "tool")


class Asked(ScriptedEngine):
    """Notes what is scored, and among what."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[Label] = []

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        self.scored += labels
        return await super().log_likelihood(prompts, labels)

    async def latent_gradient(self, *arguments: Any) -> Any:
        self.scored += arguments[1]
        return await super().latent_gradient(*arguments)


def test_answers_held_to_choices_are_scored_among_them() -> None:
    engine = Asked()
    free, other = scripted_episodes(engine, 2)
    # The engine that answered may have split a word otherwise than the grammar of this one does.
    held = replace(other, answer_text="tool", answer_token_ids=(1, 2, 3), choices=KINDS)
    strange = replace(other, answer_text="tools", choices=KINDS)
    expected = [
        Label.of(free.answer_token_ids),
        Label.of(engine.answer_tokens("tool"), KINDS),
        Label.of(strange.answer_token_ids),
    ]
    latents = torch.stack([engine.neutral_latent()] * 3)
    asyncio.run(likelihoods(engine, [free, held, strange], list(latents)))
    assert engine.scored == expected
    engine.scored.clear()
    asyncio.run(gradients(engine, [free, held, strange], latents, torch.ones(3)))
    assert engine.scored == expected
