"""What an answer under a latent is worth."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.engine import Generation, Label, SteeredPrompt
from tests.scripted_engine import ScriptedEngine
from tests.worker.choosing import CHOICES, ChoosingEngine
from tests.worker.conftest import scripted_episodes
from tests.worker.test_dataset import choosing_episodes, dataset
from worker.dataset import Example
from worker.measure import agreement, by_group, outcomes, same_norms, word_overlap


def example(answer: str, *, group: int = 0, digest: str = "d") -> Example:
    return Example(
        id="e",
        digest=digest,
        prompt=(1,),
        key=np.ones(2, np.float32),
        max_tokens=None,
        label=Label.of((1,)),
        answer=answer,
        held=(),
        known=False,
        seen_at=0.0,
        weight=1.0,
        group=group,
    )


@pytest.mark.parametrize(
    ("answer", "label", "worth"),
    [
        (r"So it is \boxed{12}.", r"\boxed{12}", 1.0),
        ("It is 12.", r"\boxed{12}", 0.0),  # not in the form of the label
        ("It is 12.", "The answer is 12", 1.0),
        ("It is 13.", "The answer is 12", 0.0),
        ("Blue", "blue.", 1.0),
    ],
)
def test_answers_agree_by_what_they_say_in_the_end(answer: str, label: str, worth: float) -> None:
    assert agreement(Generation(answer, (1,), "stop"), example(label)) == worth


def test_an_answer_that_was_cut_off_agrees_with_nothing() -> None:
    assert agreement(Generation("It is 12", (1,), "length"), example("12")) == 0


def test_free_text_agrees_by_its_words() -> None:
    assert word_overlap("A quiet harbour.", "a QUIET harbour") == 1
    assert word_overlap("a b", "c d") == 0
    assert 0 < word_overlap("a b c", "a b d") < 1
    assert word_overlap("", "") == 1
    assert word_overlap("?!", "a") == 0


def test_the_outcome_of_a_choice_is_whether_the_likeliest_of_its_label_is_chosen(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    beliefs = np.random.default_rng(1).dirichlet([0.4] * 4, 24).tolist()
    examples = dataset(engine, choosing_episodes(engine, beliefs), tmp_path).examples
    found = asyncio.run(outcomes(engine, examples, [None] * len(examples)))
    for one, value in zip(examples, found, strict=True):
        belief = engine.believes[one.prompt]
        assert value == (CHOICES[belief.index(max(belief))] == one.answer)
    assert 0 < found.mean() < 1


def test_better_latents_have_better_outcomes(engine: ScriptedEngine, tmp_path: Path) -> None:
    examples = dataset(engine, scripted_episodes(engine, 24), tmp_path).examples
    best = [engine.best_latent(one.prompt) for one in examples]
    plain = asyncio.run(outcomes(engine, examples, [None] * len(examples), samples=3))
    good = asyncio.run(outcomes(engine, examples, best, samples=3))
    assert plain.mean() < 0.3
    assert good.mean() > 0.8
    assert set(np.unique(good)) <= {0, 0.25, 0.5, 0.75, 1}


def test_samples_are_drawn_with_the_same_seeds_whatever_the_latent(tmp_path: Path) -> None:
    class Noting(ScriptedEngine):
        async def generate(
            self, prompts: Sequence[SteeredPrompt], decoding: Any, **named: Any
        ) -> list[Generation]:
            drawn.append([(one.temperature, one.seed) for one in decoding])  # type: ignore[attr-defined]
            return await super().generate(prompts, decoding, **named)  # type: ignore[arg-type]

    drawn: list[list[tuple[float, int | None]]] = []
    engine = Noting()
    examples = dataset(engine, scripted_episodes(engine, 24), tmp_path).examples[:4]
    for latent in (None, engine.neutral_latent()):
        asyncio.run(outcomes(engine, examples, [latent] * 4, samples=3))
    assert drawn[0] == drawn[1]
    assert [how for how in drawn[0] if how[1] is None] == [(0.0, None)] * 4
    assert len({seed for _, seed in drawn[0]}) == 13


def test_near_duplicates_count_once() -> None:
    examples = [
        example("1", group=0, digest="a"),
        example("1", group=1, digest="b"),
        example("1", group=0, digest="c"),
    ]
    assert by_group(examples, [1.0, 0.5, 0.0]) == [("a", 0.5), ("b", 0.5)]


def test_a_random_latent_has_the_norms_of_the_other() -> None:
    latent = torch.randn(4, 8)
    drawn = same_norms(latent, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.norm(dim=1), latent.norm(dim=1))
    assert not torch.allclose(drawn, latent)
