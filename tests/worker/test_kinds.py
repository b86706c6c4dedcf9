"""Several kinds of task in one memory: who judges, where a prior may speak, and what is not taken away."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory.episode import Episode
from memory.prior import Competence, Prior, PriorNetwork
from model.engine import Decoding, Generation, Label, SteeredPrompt
from model.scripted_engine import ScriptedEngine
from tests.worker.conftest import scripted_episodes
from worker.contestants import Recall
from worker.errors import TooFewEpisodesError
from worker.gate import GateReport, judge
from worker.kinds import Kind, kinds
from worker.neighbourhood import prompt_digest, stack_keys
from worker.split import MIN_HOLDOUT, Split, split
from worker.verdict import KEPT, LOST, Verdict, decide

AXES = {"sums": 0, "poems": 1, "news": 2}


def of_kind(
    engine: ScriptedEngine, name: str, count: int, *, spread: float = 0.5, start: int = 0
) -> list[Episode]:
    """Return episodes whose keys lie around one axis of the key space, `name` in their prompts."""
    rng = np.random.default_rng(AXES[name])
    episodes = scripted_episodes(engine, count, answer="1", start=1000 * AXES[name] + start)
    size = len(episodes[0].key)
    keys = np.eye(size)[AXES[name]] + spread * rng.normal(size=(start + count, size))[start:] / size**0.5
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return [
        replace(episode, key=key.astype(np.float32), prompt_text=name)
        for episode, key in zip(episodes, unit, strict=True)
    ]


def names(episodes: Sequence[Episode]) -> list[str]:
    return sorted({episode.prompt_text for episode in episodes})


def dealt(*episodes: list[Episode], seen: Sequence[Episode] = ()) -> Split:
    digests = {prompt_digest(episode) for episode in seen}
    return split([episode for some in episodes for episode in some], holdout_share=0.25, seed=0, seen=digests)


class Knowing(ScriptedEngine):
    """Says what was remembered under the candidate's latent only in kinds that it knows, and under any other
    in those that it spoils. Likelihoods tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.kind_of: dict[tuple[int, ...], str] = {}
        self.knows: set[str] = set()
        self.spoils: set[str] = set()

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        return torch.full((len(prompts),), -1.0)

    async def generate(
        self, prompts: Sequence[SteeredPrompt], decoding: Decoding | Sequence[Decoding]
    ) -> list[Generation]:
        def text(prompt: SteeredPrompt) -> str:
            kind = self.kind_of[prompt.token_ids]
            served = prompt.latent is not None and torch.allclose(prompt.latent, network(self).base)
            right = served if kind in self.knows else kind in self.spoils and not served
            return "1" if right else "no idea"

        return [Generation(text(prompt), (1,), "stop") for prompt in prompts]


@pytest.fixture
def knowing() -> Knowing:
    return Knowing()


def network(engine: ScriptedEngine) -> PriorNetwork:
    length, size = engine.space.shape
    torch.manual_seed(1)
    return PriorNetwork(size, length, rank=4, base=engine.neutral_latent() + 0.1 * torch.randn(length, size))


def verdict(engine: Knowing, sides: Split, active: Prior | None = None, *, goes_on: bool = False) -> Verdict:
    answers_only = [
        replace(e, latent_earned=False) for e in (*sides.train, *sides.validation, *sides.holdout)
    ]
    engine.kind_of = {e.prompt_token_ids: e.prompt_text for e in answers_only}
    first, second = len(sides.train), len(sides.train) + len(sides.validation)
    plain = replace(
        sides,
        train=tuple(answers_only[:first]),
        validation=tuple(answers_only[first:second]),
        holdout=tuple(answers_only[second:]),
    )
    return asyncio.run(
        decide(
            engine,
            network(engine),
            active,
            plain,
            recall=lambda floor: Recall(floor=floor),
            seed=0,
            goes_on=goes_on,
        )
    )


def prior_on(engine: ScriptedEngine, episodes: Sequence[Episode]) -> Prior:
    return Prior("v1", engine.space.id, network(engine), Competence(stack_keys(episodes), 0.6), {})


def test_each_kind_has_its_own_judges(knowing: Knowing) -> None:
    sides = dealt(of_kind(knowing, "sums", 100), of_kind(knowing, "poems", 20))
    held_out = [episode.prompt_text for episode in sides.holdout]
    assert (held_out.count("sums"), held_out.count("poems")) == (25, 5)
    assert len(set(sides.holdout_groups)) == 30
    assert [names(kind.train) for kind in kinds(sides)] == [["sums"], ["poems"]]
    assert all(names(kind.holdout) == names(kind.train) for kind in kinds(sides))


def test_a_kind_of_near_twins_is_judged_beside_another_one(knowing: Knowing) -> None:
    """Chains of near-twins swallow it at the cosine that is right for the other kind."""
    alike = of_kind(knowing, "poems", 40, spread=0.12)
    cosines = stack_keys(alike) @ stack_keys(alike).T
    assert cosines[~np.eye(40, dtype=bool)].min() > 0.97
    sides = dealt(of_kind(knowing, "sums", 40), alike)
    assert [episode.prompt_text for episode in sides.holdout].count("poems") == 10
    assert sides.twin_cosine > 0.97


def test_a_kind_that_cannot_be_judged_is_trained_on_and_not_spoken_to(knowing: Knowing) -> None:
    alike = of_kind(knowing, "poems", 20, spread=0.06)
    sides = dealt(of_kind(knowing, "sums", 40), alike)
    assert names(sides.train) == ["poems", "sums"]
    assert [names(kind.train) for kind in kinds(sides)] == [["sums"]]
    knowing.knows = {"sums", "poems"}
    found = verdict(knowing, sides)
    assert found.report.promoted
    assert not any(found.competence.covers(episode.key) for episode in alike)


def test_a_kind_that_nobody_asks_for_any_more_does_not_make_a_night_begin_anew(knowing: Knowing) -> None:
    old, new = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 40)
    first = dealt(old)
    seen = first.train
    unseen_of_old = {e.id for e in (*first.holdout, *first.validation)}
    alone = dealt([e for e in old if e.id not in {v.id for v in first.validation}], seen=seen)
    assert not alone.unseen
    both = dealt([e for e in old if e.id not in {v.id for v in first.validation}], new, seen=seen)
    assert both.unseen
    judges = {e.id for e in both.holdout if e.prompt_text == "sums"}
    assert len(judges) >= MIN_HOLDOUT
    assert judges <= unseen_of_old


def test_a_kind_that_the_model_masters_alone_is_left_out(knowing: Knowing) -> None:
    """Learning to say what is said anyway costs the kind that has something to learn."""
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    mastered = [
        replace(episode, plain_reward=episode.reward - 0.01, latent_earned=False) for episode in poems
    ]
    sides = dealt(sums, mastered)
    assert names([*sides.train, *sides.validation, *sides.holdout]) == ["sums"]
    assert [e.id for e in sides.holdout] == [e.id for e in dealt(sums).holdout]
    some = [*poems[:3], *mastered[3:]]
    assert names(dealt(sums, some).holdout) == ["poems", "sums"]
    with pytest.raises(TooFewEpisodesError, match="to 60 of 60 remembered prompts"):
        dealt(mastered)
    with pytest.raises(TooFewEpisodesError, match=r"5 different prompts.*to 60 others unsteered answers"):
        dealt(sums[:5], mastered)


def test_a_latent_that_earned_its_place_has_gained_whatever_answer_is_remembered(knowing: Knowing) -> None:
    """The shortest of the surest answers may have a lower reward than the one that the latent won with."""
    won = [
        replace(episode, plain_reward=episode.reward + 0.04, latent_earned=True)
        for episode in of_kind(knowing, "sums", 40)
    ]
    assert names(dealt(won).holdout) == ["sums"]
    with pytest.raises(TooFewEpisodesError, match="to 40 of 40"):
        dealt([replace(episode, latent_earned=False) for episode in won])


def test_the_prior_is_silent_at_a_kind_that_was_left_out(knowing: Knowing) -> None:
    """Nobody judged what the new weights do there, and the unsteered answers are the best."""
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    knowing.knows = {"sums"}
    mastered = [replace(episode, plain_reward=episode.reward, latent_earned=False) for episode in poems]
    sides = dealt(sums, mastered)
    assert names(sides.left_out) == ["poems"]
    assert len(sides.left_out) == 60
    found = verdict(knowing, sides, prior_on(knowing, poems), goes_on=True)
    assert found.report.promoted
    assert not any(found.competence.covers(episode.key) for episode in poems)


def test_prompts_that_watch_the_training_hold_a_kind_together(knowing: Knowing) -> None:
    """A chain whose middle is on no judging side is one kind all the same."""
    near, far = of_kind(knowing, "sums", 30, spread=0.3), of_kind(knowing, "poems", 30, spread=0.3)
    between = [
        replace(one, key=(one.key + other.key) / np.float32(np.linalg.norm(one.key + other.key)))
        for one, other in zip(near[:4], far[:4], strict=True)
    ]
    sides = Split(
        train=(*near[:20], *far[:20]),
        validation=tuple(between),
        holdout=(*near[20:], *far[20:24]),
        holdout_groups=tuple(range(14)),
        twin_cosine=0.97,
        unseen=True,
    )
    (kind,) = kinds(sides)
    assert (len(kind.train), len(kind.holdout)) == (40, 14)
    assert [names(kind.train) for kind in kinds(replace(sides, validation=()))] == [["sums"]]


def test_a_few_strays_change_nothing(knowing: Knowing) -> None:
    many, few = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 3)
    sides = dealt(many, few)
    assert names(sides.train) == ["poems", "sums"]
    (kind,) = kinds(sides)
    assert names(kind.train) == ["sums"]
    assert {e.id for e in sides.holdout} == {e.id for e in dealt(many).holdout}


def test_a_kind_with_hardly_anything_unseen_does_not_make_a_night_begin_anew(knowing: Knowing) -> None:
    """Strays are trained on without judges; when they have become a kind, they still have none."""
    old, strays = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 6)
    first = dealt(old, strays)
    assert names(first.train) == ["poems", "sums"]
    new = [*of_kind(knowing, "sums", 40, start=40), *of_kind(knowing, "poems", 3, start=6)]
    second = dealt(old, strays, new, seen=first.train)
    assert second.unseen
    assert names(second.holdout) == ["sums"]


def test_strays_are_judged_together_and_do_not_speak_for_a_large_kind(knowing: Knowing) -> None:
    alike = of_kind(knowing, "poems", 40, spread=0.06)
    size = len(alike[0].key)
    strays = [
        replace(episode, key=np.eye(size, dtype=np.float32)[10 + number // 2] + 0.2 * episode.key)
        for number, episode in enumerate(of_kind(knowing, "news", 24))
    ]
    sides = dealt(alike, strays)
    assert names(sides.holdout) == ["news"]
    (kind,) = kinds(sides)
    assert names(kind.train) == ["news"]


def test_prompts_of_no_kind_at_all_are_one() -> None:
    rng = np.random.default_rng(0)
    engine = ScriptedEngine()
    scattered = [
        replace(e, key=rng.normal(size=64).astype(np.float32)) for e in scripted_episodes(engine, 40)
    ]
    sides = dealt(scattered)
    assert kinds(sides) == (Kind(sides.train, sides.holdout, sides.holdout_groups),)


def test_each_kind_has_its_own_threshold(knowing: Knowing) -> None:
    """A loose kind does not widen the region around a tight one."""
    tight, loose = of_kind(knowing, "sums", 40, spread=0.3), of_kind(knowing, "poems", 40, spread=0.8)
    knowing.knows = {"sums", "poems"}
    alone = verdict(knowing, dealt(tight)).competence
    both = verdict(knowing, dealt(tight, loose)).competence
    asked = of_kind(knowing, "sums", 200, spread=0.45, start=40)
    inside = [alone.covers(episode.key) for episode in asked]
    assert 0 < sum(inside) < len(inside)
    assert [both.covers(episode.key) for episode in asked] == inside
    assert all(both.covers(episode.key) for episode in dealt(tight, loose).holdout)


def test_a_kind_that_gains_is_served_and_one_that_is_spoilt_is_left_plain(knowing: Knowing) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    knowing.knows, knowing.spoils = {"sums"}, {"poems"}
    found = verdict(knowing, dealt(sums, poems))
    assert found.report.promoted, found.report.reason
    assert "kind 1 of 2 left without the prior: not better than" in found.report.reason
    assert "kind 2 of 2 served: holds beside every control" in found.report.reason
    assert [report.promoted for report in found.report.kinds] == [False, True]
    assert found.report.coverage == pytest.approx(0.4)
    assert all(found.competence.covers(episode.key) for episode in sums)
    assert not any(found.competence.covers(episode.key) for episode in poems)


def test_one_that_gains_nowhere_is_refused(knowing: Knowing) -> None:
    found = verdict(knowing, dealt(of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 40)))
    assert not found.report.promoted
    assert found.report.reason.count("left without the prior") == 2


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_the_active_prior_serves_is_not_taken_away(knowing: Knowing, goes_on: bool) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    active = prior_on(knowing, poems)
    knowing.knows, knowing.spoils = {"sums"}, {"poems"}
    found = verdict(knowing, dealt(sums, poems), active, goes_on=goes_on)
    assert not found.report.promoted
    assert LOST in found.report.reason


def test_where_nobody_judges_tonight_the_candidate_speaks_where_the_active_prior_does(
    knowing: Knowing,
) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 40)
    active = prior_on(knowing, poems)
    knowing.knows = {"sums"}
    for goes_on, speaks in ((True, True), (False, False)):
        found = verdict(knowing, dealt(sums), active, goes_on=goes_on)
        assert found.report.promoted
        assert all(found.competence.covers(episode.key) for episode in sums)
        asked = of_kind(knowing, "poems", 20, start=40)
        assert [found.competence.covers(e.key) for e in asked] == [
            speaks and active.covers(e.key) for e in asked
        ]
        assert any(active.covers(e.key) for e in asked)


def test_regions_of_the_active_prior_keep_what_it_is_asked_with(knowing: Knowing) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 40)
    active = prior_on(knowing, poems)
    means = 0.9 * active.competence.means_of_all
    active = replace(active, competence=replace(active.competence, means=means))
    knowing.knows = {"sums"}
    sides = dealt(sums)
    found = verdict(knowing, sides, active, goes_on=True).competence
    assert found.mean(poems[0].key) == pytest.approx(means[0])
    ours = stack_keys(sides.train).mean(axis=0)
    assert found.mean(sums[0].key) == pytest.approx(ours, abs=1e-5)


def test_what_is_judged_anew_does_not_keep_its_old_region(knowing: Knowing) -> None:
    sums = of_kind(knowing, "sums", 40)
    knowing.knows = {"sums"}
    wide = replace(prior_on(knowing, sums), competence=Competence(stack_keys(sums), 0.55))
    found = verdict(knowing, dealt(sums), wide, goes_on=True)
    fresh = verdict(knowing, dealt(sums), None)
    asked = of_kind(knowing, "sums", 200, spread=0.9, start=40)
    inside = [fresh.competence.covers(episode.key) for episode in asked]
    assert [found.competence.covers(episode.key) for episode in asked] == inside
    assert sum(wide.covers(episode.key) for episode in asked) > sum(inside)


def test_the_floor_of_recall_is_the_least_of_all_kinds(knowing: Knowing) -> None:
    tight, loose = of_kind(knowing, "sums", 40, spread=0.3), of_kind(knowing, "poems", 40, spread=0.8)
    floors = [verdict(knowing, dealt(kind)).recall_floor for kind in (tight, loose)]
    assert floors[1] < floors[0]
    assert verdict(knowing, dealt(tight, loose)).recall_floor == pytest.approx(floors[1])


def test_a_kind_that_is_new_to_the_active_prior_is_judged_as_on_a_first_night(knowing: Knowing) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    knowing.knows = {"sums", "poems"}
    asked: list[tuple[int, bool]] = []

    async def noting(*arguments: Any, goes_on: bool, **named: Any) -> GateReport:
        asked.append((len(arguments[3].holdout), goes_on))
        return await judge(*arguments, goes_on=goes_on, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.verdict.judge", noting)
        verdict(knowing, dealt(sums, poems), prior_on(knowing, poems), goes_on=True)
    assert asked == [(15, True), (10, False)]


def test_what_the_active_prior_serves_as_well_is_served_on(knowing: Knowing) -> None:
    sums, poems = of_kind(knowing, "sums", 40), of_kind(knowing, "poems", 60)
    active = prior_on(knowing, poems)
    knowing.knows = {"sums", "poems"}
    found = verdict(knowing, dealt(sums, poems), active, goes_on=True)
    assert found.report.promoted, found.report.reason
    assert f"kind 1 of 2 {KEPT}: not better than the active prior" in found.report.reason
    assert all(found.competence.covers(episode.key) for episode in (*sums, *poems))
    anew = verdict(knowing, dealt(sums, poems), active, goes_on=False)
    assert LOST in anew.report.reason
