"""What passes the gate and what does not."""

import asyncio
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory.episode import Episode
from memory.prior import DEFAULT_FLOOR, Competence, Prior, PriorNetwork
from model.engine import Decoding, Generation, Label, SteeredPrompt, UnsupportedError
from model.scripted_engine import CLOSE, POOR, ScriptedEngine
from tests.worker.conftest import scripted_episodes
from worker.agreement import agreement, agreements, word_overlap
from worker.bootstrap import Interval
from worker.contestants import Candidate, Recall, contestants
from worker.gate import CONTROLS, Answers, Demand, GateReport, _meets, demands, judge
from worker.region import recall_floor, region
from worker.split import Split, split
from worker.training import Recipe, train


class Mute(ScriptedEngine):
    """Gives likelihoods, but decodes nothing."""

    async def generate(
        self, prompts: Sequence[SteeredPrompt], decoding: Decoding | Sequence[Decoding]
    ) -> list[Generation]:
        raise UnsupportedError("this engine does not generate")


class Contrary(ScriptedEngine):
    """Decodes the remembered answer without a latent only."""

    def __init__(self) -> None:
        super().__init__(answer=lambda prompt, latent, how: "Answer: 1" if latent is None else "no idea")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


class Indifferent(ScriptedEngine):
    """Gives every answer the same likelihood, and decodes the remembered one under chosen latents only."""

    def __init__(self) -> None:
        super().__init__()
        self.good: list[torch.Tensor] = []
        self.misses: list[tuple[Episode, torch.Tensor]] = []
        """Where one of them does not help."""
        self.samples_help = False
        """Whether samples give the remembered answer there, too."""

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        return torch.full((len(prompts),), -1.0)

    async def generate(
        self, prompts: Sequence[SteeredPrompt], decoding: Decoding | Sequence[Decoding]
    ) -> list[Generation]:
        def text(prompt: SteeredPrompt, how: Decoding) -> str:
            z = prompt.latent
            helped = z is not None and any(same(z, good) for good in self.good)
            missed = z is not None and any(
                same(z, bad) and prompt.token_ids == episode.prompt_token_ids for episode, bad in self.misses
            )
            missed = missed and not (self.samples_help and how.temperature > 0)
            return "Answer: 1" if helped and not missed else "Let me think"

        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        pairs = zip(prompts, decodings, strict=True)
        return [Generation(text(prompt, how), (1,), "stop") for prompt, how in pairs]


class Wavering(Indifferent):
    """Likelihoods that differ by prompt and latent, and as much to one side as to the other."""

    async def log_likelihood(self, prompts: Sequence[SteeredPrompt], labels: Sequence[Label]) -> torch.Tensor:
        drawn = [np.random.default_rng([*prompt.token_ids, self._place(prompt.latent)]) for prompt in prompts]
        return torch.tensor([-1.0 + 0.1 * float(rng.normal()) for rng in drawn])

    def _place(self, latent: torch.Tensor | None) -> int:
        """Return where it stands among the chosen ones; its values differ in their last digits by machine."""
        found = (place for place, good in enumerate(self.good) if latent is not None and same(latent, good))
        return next(found, len(self.good))


class Choosing(ScriptedEngine):
    """Notes what answers are held to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, ...] | None] = set()
        self.lengths: set[int] = set()

    async def generate(
        self, prompts: Sequence[SteeredPrompt], decoding: Decoding | Sequence[Decoding]
    ) -> list[Generation]:
        decodings = [decoding] if isinstance(decoding, Decoding) else decoding
        self.seen |= {how.choices for how in decodings}
        self.lengths |= {how.max_tokens for how in decodings}
        return await super().generate(prompts, decoding)


@pytest.fixture
def sides(engine: ScriptedEngine) -> Split:
    return split(scripted_episodes(engine), holdout_share=0.25, seed=0)


def learned(engine: ScriptedEngine, sides: Split, episodes: Sequence[Episode] | None = None) -> Candidate:
    """Return a candidate trained on the split's episodes, or on others in their place."""
    length, hidden_size = engine.space.shape
    torch.manual_seed(0)
    network = PriorNetwork(hidden_size, length, rank=8, base=engine.neutral_latent())
    train_on = list(episodes if episodes is not None else sides.train)
    # Validation is taken from what it trains on, so that early stopping does not save it.
    asyncio.run(train(engine, network, train_on, train_on[:4], Recipe("replay", steps=30, batch=4)))
    return Candidate(network, region(sides.train, sides.holdout, 0))


def answered(sides: Split, text: str) -> Split:
    """Return the split with `text` as the remembered answer of the whole hold-out."""
    return replace(sides, holdout=tuple(replace(episode, answer_text=text) for episode in sides.holdout))


def judged(
    engine: ScriptedEngine,
    sides: Split,
    candidate: Candidate,
    active: Candidate | None = None,
    goes_on: bool = True,
) -> GateReport:
    serving = Prior("v1", engine.space.id, active.network, active.competence, {}) if active else None
    return asyncio.run(judge(engine, candidate, serving, sides, recall=Recall(), seed=0, goes_on=goes_on))


def test_a_good_candidate_passes_all_five_controls(engine: ScriptedEngine, sides: Split) -> None:
    weak = Candidate(
        PriorNetwork(64, 4, base=engine.neutral_latent()),
        region(sides.train, sides.holdout, 0),
    )
    report = judged(engine, sides, learned(engine, sides), weak)
    assert report.promoted, report.reason
    assert [row.control for row in report.controls] == list(CONTROLS)
    assert all(row.win and row.difference and row.difference > 0 for row in report.controls)
    proven = [row for row in report.controls if demands(goes_on=True)[row.control] == "proven by answers"]
    assert [row.control for row in proven] == ["none"]
    assert all(row.low and row.low > 0 for row in proven)


def test_the_first_night_says_that_no_prior_is_active(engine: ScriptedEngine, sides: Split) -> None:
    report = judged(engine, sides, learned(engine, sides))
    (row,) = (row for row in report.controls if row.control == "active")
    assert (row.mean, row.win, row.note) == (None, None, "no prior is active yet")
    assert report.promoted


def test_a_candidate_of_noise_is_refused(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    with torch.no_grad():
        for weights in candidate.network.parameters():
            weights.copy_(torch.randn_like(weights) * weights.std())
    report = judged(engine, sides, candidate)
    assert not report.promoted
    assert "not better than" in report.reason


def test_a_candidate_that_learned_wrong_answers_is_refused(engine: ScriptedEngine, sides: Split) -> None:
    wrong = [replace(e, answer_token_ids=(*f"{POOR}7".encode(), CLOSE)) for e in sides.train]
    report = judged(engine, sides, learned(engine, sides, wrong))
    assert not report.promoted
    assert "no latent" in report.reason


def test_a_candidate_that_learned_other_topics_answers_is_refused(
    engine: ScriptedEngine, sides: Split
) -> None:
    """Keys are dealt to the wrong episodes, so each topic gets another one's latent."""
    keys = [episode.key for episode in sides.train]
    shuffled = [
        replace(episode, key=keys[(number + 1) % len(keys)]) for number, episode in enumerate(sides.train)
    ]
    good, bad = learned(engine, sides), learned(engine, sides, shuffled)
    report = judged(engine, sides, bad, good)
    assert not report.promoted
    assert "the active prior" in report.reason


def test_a_tie_with_the_active_prior_is_refused(engine: ScriptedEngine, sides: Split) -> None:
    active = learned(engine, sides)
    nearly = replace(active, network=copy.deepcopy(active.network))
    with torch.no_grad():
        nearly.network.base += 1e-7
    for candidate in (active, nearly):
        report = judged(engine, sides, candidate, active)
        assert not report.promoted
        assert report.reason.startswith("not better than the active prior (")


def test_the_active_prior_over_again_is_refused_however_its_region_has_moved(
    engine: ScriptedEngine, sides: Split
) -> None:
    """With the region the means move that it is asked with, and so do its latents a little."""
    active = learned(engine, sides)
    candidate = replace(
        active, competence=replace(active.competence, means=0.9 * active.competence.means_of_all)
    )
    wavering = Wavering()
    remembered = answered(sides, "1")
    wavering.good = [*candidate.predict(remembered.holdout), *active.predict(remembered.holdout)]
    report = judged(wavering, remembered, candidate, active)
    assert not report.promoted
    assert report.reason == "its weights are those of the active prior"
    for weights in active.network.parameters():
        other = replace(candidate, network=copy.deepcopy(candidate.network))
        assert other.same_weights(Prior("v1", "s", active.network, active.competence, {}))
        changed = dict(zip(map(id, active.network.parameters()), other.network.parameters(), strict=True))
        with torch.no_grad():
            changed[id(weights)].view(-1)[0] += 1e-4
        assert not other.same_weights(Prior("v1", "s", active.network, active.competence, {}))


def test_a_candidate_is_asked_as_a_prior_is(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    prior = Prior("v1", engine.space.id, candidate.network, candidate.competence, {})
    for episode, latent in zip(sides.holdout, candidate.predict(sides.holdout), strict=True):
        assert np.array_equal(latent.numpy(), prior.predict(episode.key))


def test_an_untrained_candidate_is_refused(engine: ScriptedEngine, sides: Split) -> None:
    untrained = Candidate(
        PriorNetwork(64, 4, base=engine.neutral_latent()), region(sides.train, sides.holdout, 0)
    )
    assert not judged(engine, sides, untrained).promoted


def test_latents_that_are_not_finite_are_refused_unasked(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    with torch.no_grad():
        candidate.network.base[0, 0] = torch.nan
    engine.calls.clear()
    report = judged(engine, sides, candidate)
    assert not report.promoted
    assert "not finite" in report.reason
    assert not engine.calls


def test_a_candidate_that_would_speak_nowhere_is_refused(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    nowhere = Candidate(candidate.network, Competence(candidate.competence.centroids, 1.01))
    report = judged(engine, sides, nowhere)
    assert report.coverage == 0
    assert not report.promoted
    assert "covers 0 held-out neighbourhoods" in report.reason


def test_a_candidate_is_judged_where_it_would_speak(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    scores = sorted(candidate.competence.score(episode.key) for episode in sides.holdout)
    narrow = Candidate(candidate.network, Competence(candidate.competence.centroids, scores[2] - 1e-5))
    report = judged(engine, sides, narrow)
    assert report.n == len(sides.holdout) - 2
    assert report.coverage == pytest.approx(report.n / len(sides.holdout))


def test_outside_its_region_the_active_prior_counts_as_plain(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    silent = Candidate(candidate.network, Competence(candidate.competence.centroids, 1.01))
    rows = {row.control: row for row in judged(engine, sides, candidate, silent).controls}
    assert rows["active"].mean == rows["none"].mean


def test_region_holds_a_small_holdout_whole(sides: Split) -> None:
    found = region(sides.train, sides.holdout, 0)
    assert all(found.covers(episode.key) for episode in sides.holdout)


def test_region_reaches_half_as_far_again_as_the_holdout(sides: Split) -> None:
    """What was remembered is what was easy; the rest of a workload lies farther away."""
    centre, other = np.eye(64, dtype=np.float32)[:2]

    def at(cosine: float) -> np.ndarray:
        return cosine * centre + math.sqrt(1 - cosine**2) * other

    train = [replace(sides.train[0], key=centre)]
    found = region(train, [replace(sides.train[1], key=at(0.9)), replace(sides.train[2], key=at(0.95))], 0)
    assert found.covers(at(0.851))
    assert not found.covers(at(0.849))
    far = region(train, [replace(sides.train[1], key=at(0.6))], 0)
    assert far.threshold == pytest.approx(DEFAULT_FLOOR, abs=1e-4)


def test_floor_of_recall_is_the_least_similarity_of_the_holdout_to_what_was_learned(sides: Split) -> None:
    nearest = [max(float(asked.key @ known.key) for known in sides.train) for asked in sides.holdout]
    assert recall_floor(sides.train, sides.holdout) == pytest.approx(min(nearest), abs=1e-4)
    scattered = [replace(e, key=np.eye(64, dtype=np.float32)[i]) for i, e in enumerate(sides.holdout)]
    assert recall_floor(sides.train, scattered) == DEFAULT_FLOOR


def test_too_small_a_holdout_promotes_nothing(engine: ScriptedEngine, sides: Split) -> None:
    small = replace(sides, holdout=sides.holdout[:4], holdout_groups=sides.holdout_groups[:4])
    report = judged(engine, small, learned(engine, sides))
    assert not report.promoted
    assert "4 held-out neighbourhoods" in report.reason


def test_without_a_latent_that_earned_its_place_there_is_no_mean_and_no_recall(
    engine: ScriptedEngine, sides: Split
) -> None:
    answers_only = replace(
        sides,
        train=tuple(replace(e, latent_earned=False) for e in sides.train),
        holdout=tuple(replace(e, latent_earned=False) for e in sides.holdout),
    )
    report = judged(engine, answers_only, learned(engine, sides))
    rows = {row.control: row for row in report.controls}
    assert rows["mean"].note == "no latent has earned its place yet"
    assert rows["knn"].mean == pytest.approx(rows["none"].mean)
    assert report.latent_error == {}
    assert report.promoted, report.reason


def test_answers_are_decoded_under_the_choices_they_were_given(sides: Split) -> None:
    engine = Choosing()
    held = replace(sides, holdout=tuple(replace(e, choices=("yes", "no")) for e in sides.holdout))
    judged(engine, held, learned(ScriptedEngine(), sides))
    assert engine.seen == {("yes", "no")}


def test_answers_that_agree_clearly_less_are_refused(sides: Split) -> None:
    engine = Contrary()
    remembered = answered(sides, "Answer: 1")
    report = judged(engine, remembered, learned(engine, sides))
    assert not report.promoted
    assert "no latent (" in report.reason
    assert "answers agree 0 % instead of 100 %" in report.reason


def test_an_engine_without_generation_is_judged_by_likelihood(sides: Split) -> None:
    engine = Mute()
    report = judged(engine, sides, learned(engine, sides))
    assert all(row.answers is None for row in report.controls)
    assert report.promoted


def test_answers_promote_where_likelihood_says_nothing(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    indifferent = Indifferent()
    remembered = answered(sides, "1")
    assert not judged(indifferent, remembered, candidate).promoted
    indifferent.good = list(candidate.predict(remembered.holdout))
    report = judged(indifferent, remembered, candidate)
    assert report.promoted, report.reason
    rows = {row.control: row for row in report.controls}
    assert rows["none"].difference == 0
    assert rows["none"].answers is not None
    assert (rows["none"].answers.candidate, rows["none"].answers.mean) == (1.0, 0.0)


def test_where_nothing_tells_them_apart_the_candidate_that_went_on_is_the_better_guess(
    engine: ScriptedEngine, sides: Split
) -> None:
    candidate, active = learned(engine, sides), learned(engine, sides, sides.train[:4])
    wavering = Wavering()
    remembered = answered(sides, "1")
    ours, theirs = list(candidate.predict(remembered.holdout)), list(active.predict(remembered.holdout))
    wavering.good = [*ours, *theirs]
    report = judged(wavering, remembered, candidate, active)
    (row,) = (row for row in report.controls if row.control == "active")
    assert row.answers is not None
    assert row.low is not None
    assert row.high is not None
    assert (row.answers.difference, row.low < 0 < row.high) == (0, True)
    assert report.promoted, report.reason
    assert not judged(wavering, remembered, candidate, active, goes_on=False).promoted
    wavering.misses = [(remembered.holdout[0], ours[0])]
    assert not judged(wavering, remembered, candidate, active).promoted


def test_one_that_began_anew_may_prove_itself_by_likelihood_beside_the_active_prior(
    engine: ScriptedEngine, sides: Split
) -> None:
    """Only beside no latent must answers agree more: there steering itself has to be worth it."""
    candidate, active = learned(engine, sides), learned(engine, sides, sides.train[:4])
    same = ScriptedEngine(answer=lambda prompt, latent, how: "Answer: 1")
    remembered = answered(sides, "Answer: 1")
    report = judged(same, remembered, candidate, active, goes_on=False)
    rows = {row.control: row for row in report.controls}
    assert rows["active"].answers is not None
    assert rows["active"].answers.difference == 0
    assert rows["active"].win
    assert rows["none"].win is False


def test_likelier_answers_that_say_the_same_are_no_gain(engine: ScriptedEngine, sides: Split) -> None:
    """A 0.5B model's headlines were all answered as remembered without a latent, and only surer with one."""
    candidate = learned(engine, sides)
    same = ScriptedEngine(answer=lambda prompt, latent, how: "Answer: 1")
    remembered = answered(sides, "Answer: 1")
    report = judged(same, remembered, candidate)
    rows = {row.control: row for row in report.controls}
    assert rows["none"].low is not None
    assert rows["none"].low > 0
    assert not report.promoted
    assert report.reason.startswith("not better than no latent (")
    assert "surer, but no more of them agree" in report.reason


def test_a_little_better_than_the_active_prior_is_enough_and_than_no_latent_is_not(
    engine: ScriptedEngine, sides: Split
) -> None:
    """One answer more than the other: the interval of the difference holds zero."""
    candidate, active = learned(engine, sides), learned(engine, sides, sides.train[:4])
    indifferent = Indifferent()
    remembered = answered(sides, "1")
    ours, theirs = list(candidate.predict(remembered.holdout)), list(active.predict(remembered.holdout))
    indifferent.good, indifferent.misses = [*ours, *theirs], [(remembered.holdout[0], theirs[0])]
    report = judged(indifferent, remembered, candidate, active)
    (row,) = (row for row in report.controls if row.control == "active")
    assert row.answers is not None
    assert row.answers.low == 0
    assert report.promoted, report.reason
    anew = judged(indifferent, remembered, candidate, active, goes_on=False)
    assert not anew.promoted
    assert anew.reason.startswith("not better than the active prior (")
    indifferent.good, indifferent.misses = ours, list(zip(remembered.holdout, ours, strict=True))[1:]
    report = judged(indifferent, remembered, candidate)
    assert not report.promoted
    assert "the interval does not exclude zero" in report.reason


def test_samples_prove_what_greedy_answers_are_too_few_for(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    indifferent = Indifferent()
    remembered = answered(sides, "1")
    ours = list(candidate.predict(remembered.holdout))
    indifferent.good, indifferent.misses = ours, list(zip(remembered.holdout, ours, strict=True))[1:]
    assert not judged(indifferent, remembered, candidate).promoted
    indifferent.samples_help = True
    report = judged(indifferent, remembered, candidate)
    assert report.promoted, report.reason
    (row,) = (row for row in report.controls if row.control == "none")
    assert row.answers is not None
    assert row.samples is not None
    assert (row.answers.candidate, row.answers.low) == (pytest.approx(1 / 15), 0.0)
    assert (row.samples.candidate, row.samples.mean) == (pytest.approx((5 - 14 / 15) / 5), 0.0)


def test_samples_that_agree_more_are_no_gain_where_greedy_answers_do_not(
    engine: ScriptedEngine, sides: Split
) -> None:
    candidate = learned(engine, sides)
    indifferent = Indifferent()
    remembered = answered(sides, "1")
    ours = list(candidate.predict(remembered.holdout))
    indifferent.good, indifferent.misses = ours, list(zip(remembered.holdout, ours, strict=True))
    indifferent.samples_help = True
    report = judged(indifferent, remembered, candidate)
    assert not report.promoted
    assert report.reason.startswith("not better than no latent (")
    assert "surer, but no more of them agree" in report.reason.split(")")[0]


@pytest.mark.parametrize("demand", ["better", "no worse", "not proven worse", "proven", "proven by answers"])
def test_samples_win_by_proof_only_and_not_by_an_average(demand: Demand) -> None:
    """Greedy answers agree a little more, but for one demand that asks more of them."""
    greedy = (
        Answers(9, 0.6, 0.5, 0.1, -0.1, 0.3)
        if demand == "proven by answers"
        else Answers(9, 0.5, 0.5, 0, 0, 0)
    )
    answers = Interval(greedy.difference, -0.1, 0.3) if greedy.better else Interval(0, 0, 0)
    worse = Interval(-0.05, -0.08, -0.02)
    assert not _meets(demand, [worse, answers, Interval(0.014, -0.10, 0.12)], greedy)
    assert _meets(demand, [worse, answers, Interval(0.1, 0.02, 0.2)], greedy)


@pytest.mark.parametrize(("episodes", "each"), [(5, 8), (8, 8), (15, 5), (40, 2)])
def test_all_contestants_sample_with_the_same_seeds(sides: Split, episodes: int, each: int) -> None:
    asked: dict[bytes, dict[tuple[int, ...], list[Decoding]]] = {}

    class Noting(ScriptedEngine):
        async def generate(
            self, prompts: Sequence[SteeredPrompt], decoding: Decoding | Sequence[Decoding]
        ) -> list[Generation]:
            assert not isinstance(decoding, Decoding)
            for prompt, how in zip(prompts, decoding, strict=True):
                name = b"" if prompt.latent is None else prompt.latent.numpy().tobytes()
                asked.setdefault(name, {}).setdefault(prompt.token_ids, []).append(how)
            return await super().generate(prompts, decoding)

    known = sides.holdout  # the same prompt again gets one more token in front
    held = [
        replace(known[at % 15], prompt_token_ids=(65,) * (at // 15) + known[at % 15].prompt_token_ids)
        for at in range(episodes)
    ]
    zeros, ones = torch.zeros(4, 64), torch.ones(4, 64)
    found = asyncio.run(
        agreements(
            Noting(),
            held,
            {"candidate": [zeros] * episodes, "none": [None] * episodes, "x": [ones] * episodes},
        )
    )
    assert found is not None
    assert {len(one.greedy) for one in found.values()} == {min(episodes, 32)}
    first, *others = asked.values()
    assert others == [first] * 2
    seeds = [[how.seed for how in given] for given in first.values()]
    assert all(len(given) == each and given[0] is None for given in seeds)
    drawn = [seed for given in seeds for seed in given[1:]]
    assert None not in drawn
    assert len(set(drawn)) == len(drawn)
    assert all([how.temperature for how in given] == [0, *[1.0] * (each - 1)] for given in first.values())


def test_a_little_worse_than_the_mean_latent_is_no_matter_to_a_candidate_that_goes_on(
    engine: ScriptedEngine, sides: Split
) -> None:
    """One answer less than the mean latent, which is made of what the active prior served, is chance."""
    candidate, active = learned(engine, sides), learned(engine, sides, sides.train[:4])
    indifferent = Indifferent()
    remembered = answered(sides, "1")
    ours, theirs = list(candidate.predict(remembered.holdout)), list(active.predict(remembered.holdout))
    mean = torch.from_numpy(np.mean([e.latent.astype(np.float32) for e in sides.train], axis=0))
    indifferent.good = [mean, *ours, *theirs]
    by_ours = list(zip(remembered.holdout, ours, strict=True))
    by_theirs = list(zip(remembered.holdout, theirs, strict=True))
    indifferent.misses = [*by_ours[:1], *by_theirs[:2]]
    report = judged(indifferent, remembered, candidate, active)
    (row,) = (row for row in report.controls if row.control == "mean")
    assert row.answers is not None
    assert row.answers.worse
    assert report.promoted, report.reason
    first = judged(indifferent, remembered, candidate, goes_on=False)
    anew = judged(indifferent, remembered, candidate, active, goes_on=False)
    for other in (first, anew):
        assert not other.promoted
        assert "the mean latent" in other.reason
    indifferent.good, indifferent.misses = [mean, *ours], by_ours[2:]
    clearly = judged(indifferent, remembered, candidate, active)
    assert not clearly.promoted
    assert "the mean latent" in clearly.reason


def test_report_is_strict_json_with_a_row_per_control(engine: ScriptedEngine, sides: Split) -> None:
    report = judged(engine, sides, learned(engine, sides))
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["decision"] == "promoted"
    assert found["n"] == len(sides.holdout)
    assert {row["control"] for row in found["controls"]} == {"none", "knn", "mean", "random", "active"}
    assert set(found["latent_error"]) == {"candidate", "neutral", "mean"}
    assert 0.5 < found["coverage"] <= 1


def test_report_depends_on_the_seed_only(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    assert judged(engine, sides, candidate) == judged(engine, sides, candidate)


def test_random_control_has_the_candidates_norms(engine: ScriptedEngine, sides: Split) -> None:
    candidate = learned(engine, sides)
    found = contestants(
        candidate, None, sides.train, sides.holdout, neutral=engine.neutral_latent(), recall=Recall(), seed=0
    )
    for proposed, drawn in zip(found["candidate"], found["random"], strict=True):
        assert proposed is not None and drawn is not None  # noqa: PT018 for the types
        torch.testing.assert_close(proposed.norm(dim=1), drawn.norm(dim=1))
        assert not torch.allclose(proposed, drawn)


def test_recall_control_looks_past_neighbours_without_a_latent(engine: ScriptedEngine, sides: Split) -> None:
    asked = sides.holdout[0]
    by_distance = sorted(sides.train, key=lambda episode: -float(episode.key @ asked.key))
    plain_first = [replace(e, latent_earned=rank >= 2) for rank, e in enumerate(by_distance)]
    found = contestants(
        learned(engine, sides),
        None,
        plain_first,
        [asked],
        neutral=engine.neutral_latent(),
        recall=Recall(k=1, floor=-1.0),
        seed=0,
    )
    (latent,) = found["knn"]
    assert latent is not None
    torch.testing.assert_close(latent, torch.as_tensor(by_distance[2].latent).float())


def test_recall_control_injects_nothing_below_the_floor(engine: ScriptedEngine, sides: Split) -> None:
    found = contestants(
        learned(engine, sides),
        None,
        sides.train,
        sides.holdout,
        neutral=engine.neutral_latent(),
        recall=Recall(floor=1.0),
        seed=0,
    )
    assert found["knn"] == [None] * len(sides.holdout)


@pytest.mark.parametrize(
    ("answer", "remembered", "overlap"),
    [
        ("Sports.", "sports", 1.0),
        ("The answer is 12", "12", 0.4),
        ("World", "Sports", 0.0),
        ("", "", 1.0),
        ("", "12", 0.0),
    ],
)
def test_word_overlap(answer: str, remembered: str, overlap: float) -> None:
    assert word_overlap(answer, remembered) == pytest.approx(overlap)


def remembering(text: str, choices: tuple[str, ...] = ()) -> Episode:
    (episode,) = scripted_episodes(ScriptedEngine())[:1]
    return replace(episode, answer_text=text, choices=choices)


@pytest.mark.parametrize(
    ("answer", "remembered", "agrees"),
    [
        ("5 + 7 = 12, so \\boxed{12}", "It is \\boxed{12.0}", 1.0),
        ("5 + 7 = 12", "It is \\boxed{12}", 0.0),
        ("It is \\boxed{12}", "5 + 7 = 12", 1.0),
        ("The answer is 12", "12", 1.0),
        ("World", "Sports", 0.0),
        ("world", "World", 1.0),
        (
            "Once there was a fox who lived in the deep dark wood",
            "Once there was a cat who lived in the deep dark wood",
            11 / 12,
        ),
    ],
)
def test_agreement_is_about_the_final_answer_where_there_is_one(
    answer: str, remembered: str, agrees: float
) -> None:
    assert agreement(Generation(answer, (1,), "stop"), remembering(remembered)) == pytest.approx(agrees)


def test_an_answer_that_was_cut_off_agrees_with_none() -> None:
    assert agreement(Generation("It is 12", (1,), "length"), remembering("12")) == 0.0
    assert agreement(Generation("It is 12", (1,), "stop"), remembering("12")) == 1.0


def test_choices_agree_only_when_they_are_the_same() -> None:
    plus = remembering("C++", ("C++", "C#", "+", "-"))
    assert [agreement(Generation(text, (1,), "stop"), plus) for text in ("C++", "C#")] == [1.0, 0.0]
    assert agreement(Generation("-", (1,), "stop"), remembering("+", ("+", "-"))) == 0.0


def test_answers_may_be_as_long_as_the_request_allowed(sides: Split) -> None:
    engine = Choosing()
    held = replace(sides, holdout=tuple(replace(e, max_tokens=40) for e in sides.holdout))
    judged(engine, held, learned(ScriptedEngine(), sides))
    assert engine.lengths == {40}


def test_the_first_episodes_judged_are_of_different_neighbourhoods(
    engine: ScriptedEngine, sides: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.gate.MAX_HOLDOUT", 5)
    crowded = replace(sides, holdout_groups=(0,) * (len(sides.holdout) - 4) + (1, 2, 3, 4))
    report = judged(engine, crowded, learned(engine, sides))
    assert (report.n, report.neighbourhoods) == (5, 5)


def test_likelihoods_that_are_not_finite_are_refused(sides: Split) -> None:
    class Broken(ScriptedEngine):
        async def log_likelihood(self, *arguments: Any) -> torch.Tensor:
            return (await super().log_likelihood(*arguments)) * torch.nan

    candidate = learned(ScriptedEngine(), sides)
    report = judged(Broken(), sides, candidate)
    assert not report.promoted
    json.dumps(report.to_json(), allow_nan=False)
