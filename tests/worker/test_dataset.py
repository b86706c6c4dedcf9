"""What a night learns from: duplicates, clusters, labels and folds."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory.episode import Episode, prompt_id
from memory.snapshot import write_snapshot
from model.engine import Label
from tests.scripted_engine import ScriptedEngine
from tests.worker.choosing import CHOICES, ChoosingEngine
from tests.worker.conftest import scripted_episodes
from worker.dataset import FEWEST, Dataset, load
from worker.errors import SpaceMismatchError, TooFewEpisodesError


def dataset(
    engine: ScriptedEngine, episodes: Sequence[Episode] | None, folder: Path, **options: Any
) -> Dataset:
    """Return the dataset of episodes; None: the snapshot is there."""
    if episodes is not None:
        write_snapshot(episodes, folder / "snapshot")
    chosen = {
        "space": engine.space.id,
        "min_reward": 0.5,
        "min_episodes": 4,
        "holdout_share": 0.25,
        "calibration": 1.0,
        "seed": 0,
    } | options
    return asyncio.run(load(folder / "snapshot", engine, **chosen))


def choosing_episodes(
    engine: ChoosingEngine, beliefs: Sequence[Sequence[float]], answers: Sequence[str] | None = None
) -> list[Episode]:
    """Return an episode held to `CHOICES` for each of the beliefs, answered with the likeliest one."""
    made = []
    episodes = scripted_episodes(engine, 3 * len(beliefs))[::3]
    for at, (episode, belief) in enumerate(zip(episodes, beliefs, strict=True)):
        engine.believes[tuple(episode.prompt_token_ids)] = belief
        answer = answers[at] if answers else CHOICES[int(np.argmax(belief))]
        made.append(
            replace(
                episode,
                choices=CHOICES,
                answer_text=answer,
                answer_token_ids=engine.answer_tokens(answer),
                reward=0.1,
            )
        )
    return made


def test_each_cluster_is_told_apart_and_the_largest_comes_first(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    episodes = scripted_episodes(engine, 40)
    found = dataset(engine, episodes, tmp_path)
    assert found.clusters == 3
    sizes = [len(found.of(cluster, range(40))) for cluster in range(3)]
    assert sizes == [14, 13, 13]
    for cluster in range(3):
        topics = {engine.topic(found.examples[at].prompt) for at in found.of(cluster, range(40))}
        assert len(topics) == 1


def test_a_cluster_that_is_too_small_to_judge_is_left_out(engine: ScriptedEngine, tmp_path: Path) -> None:
    episodes = scripted_episodes(engine, 40)
    sums = [one for one in episodes if "sums" in one.prompt_text]
    few = [one for one in episodes if "poems" in one.prompt_text][: FEWEST - 1]
    found = dataset(engine, [*sums, *few], tmp_path)
    assert found.clusters == 1
    assert found.left_out == len(few)


def test_of_one_prompt_the_best_answer_counts_then_the_newest(engine: ScriptedEngine, tmp_path: Path) -> None:
    first, *others = [one for one in scripted_episodes(engine, 40) if "sums" in one.prompt_text]
    # What the answer was held to makes another episode of the same prompt.
    poorer = replace(first, id=prompt_id("space", "default", (1,)), reward=0.6, answer_text="poorer")
    found = dataset(engine, [poorer, first, *others], tmp_path)
    texts = {example.answer for example in found.examples if example.prompt == tuple(first.prompt_token_ids)}
    assert texts == {first.answer_text}
    assert found.left_out == 1


def test_a_prompt_with_two_sets_of_choices_is_two_questions_of_one_group(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    beliefs = [(0.8, 0.1, 0.05, 0.05), (0.1, 0.8, 0.05, 0.05)] * 12
    episodes = choosing_episodes(engine, beliefs)
    fewer = [
        replace(one, id=prompt_id("space", "default", (number,)), choices=CHOICES[:2], answer_text=CHOICES[0])
        for number, one in enumerate(episodes)
    ]
    found = dataset(engine, [*episodes, *fewer], tmp_path)
    asked = {(example.prompt, example.choices) for example in found.examples}
    assert len(asked) == 48
    assert all(set(leanings) == {CHOICES, CHOICES[:2]} for leanings in found.leanings)
    groups: dict[tuple[int, ...], set[int]] = {}
    for example in found.examples:
        groups.setdefault(example.prompt, set()).add(example.group)
    assert all(len(of_prompt) == 1 for of_prompt in groups.values())


def test_near_duplicates_are_of_one_group_and_on_one_side(engine: ScriptedEngine, tmp_path: Path) -> None:
    episodes = scripted_episodes(engine, 60)
    twins = [
        replace(
            one,
            id=prompt_id("space", "default", (number,)),
            prompt_token_ids=(*one.prompt_token_ids[:-1], one.prompt_token_ids[-1]),
            key=turned(one.key, 0.985),
        )
        for number, one in enumerate(episodes[:9])
    ]
    twins = [
        replace(
            one,
            prompt_token_ids=engine.render(
                [{"role": "user", "content": f"{one.prompt_text.split()[1]} twin {n}"}]
            ),
        )
        for n, one in enumerate(twins)
    ]
    found = dataset(engine, [*episodes, *twins], tmp_path)
    groups: dict[int, list[int]] = {}
    for at, example in enumerate(found.examples):
        groups.setdefault(example.group, []).append(at)
    assert max(map(len, groups.values())) >= 2
    for fold in found.folds:
        train = {found.examples[at].group for at in fold.train}
        test = {found.examples[at].group for at in fold.test}
        assert not train & test


def turned(key: np.ndarray, cosine: float) -> np.ndarray:
    other = np.roll(key, 1)
    other = other - (other @ key) * key
    other /= np.linalg.norm(other)
    return (cosine * key + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def test_a_small_night_has_halves_that_judge_each_other_and_one_training_on_all(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    found = dataset(engine, scripted_episodes(engine, 40), tmp_path)
    first, second, everything = found.folds
    assert set(first.train) == set(second.test)
    assert set(second.train) == set(first.test)
    assert sorted(first.train + second.train) == sorted(everything.train) == list(range(40))
    assert everything.test == ()
    for fold in (first, second):
        for cluster in range(found.clusters):
            assert len(found.of(cluster, fold.train)) >= FEWEST // 2


def test_a_large_night_holds_some_out_of_its_one_training(engine: ScriptedEngine, tmp_path: Path) -> None:
    found = dataset(engine, scripted_episodes(engine, 240), tmp_path)
    (fold,) = found.folds
    assert not set(fold.train) & set(fold.test)
    assert sorted(fold.train + fold.test) == list(range(240))
    assert len(fold.test) == pytest.approx(60, abs=3)


def test_the_same_snapshot_gives_the_same_dataset(engine: ScriptedEngine, tmp_path: Path) -> None:
    episodes = scripted_episodes(engine, 40)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, same = (
        dataset(engine, given, tmp_path / name) for name, given in (("a", episodes), ("b", episodes[::-1]))
    )
    assert [example.id for example in one.examples] == [example.id for example in same.examples]
    assert one.folds == same.folds


def test_labels_of_choices_undo_what_the_model_says_too_often(tmp_path: Path) -> None:
    """It says `fruit` to everything, a little less where something else is right."""
    engine = ChoosingEngine()
    beliefs = [
        [0.94, 0.02, 0.02, 0.02],
        [0.70, 0.26, 0.02, 0.02],
        [0.70, 0.02, 0.26, 0.02],
        [0.70, 0.02, 0.02, 0.26],
    ] * 4
    found = dataset(engine, choosing_episodes(engine, beliefs), tmp_path)
    assert len(found.examples) == 16
    for example in found.examples:
        belief = engine.believes[example.prompt]
        assert example.answer == (CHOICES[belief.index(0.26)] if 0.26 in belief else "fruit")
    (tmp_path / "raw").mkdir()
    raw = dataset(engine, choosing_episodes(engine, beliefs), tmp_path / "raw", calibration=0.0)
    assert {example.answer for example in raw.examples} == {"fruit"}


def test_what_the_day_knows_of_choices_is_not_scored_again(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    beliefs = np.random.default_rng(0).dirichlet([0.5] * 4, 30).tolist()
    episodes = choosing_episodes(engine, beliefs)
    expected = dataset(engine, episodes, tmp_path)
    known = [
        replace(one, held_log_probabilities=tuple(np.log(engine.believes[tuple(one.prompt_token_ids)])))
        for one in episodes
    ]
    asked = len(engine.calls)
    (tmp_path / "known").mkdir()
    found = dataset(engine, known, tmp_path / "known")
    assert len(engine.calls) == asked
    labels = [[example.label.probabilities for example in one.examples] for one in (expected, found)]
    assert [len(one) for one in labels] == [len(expected.examples)] * 2
    for ours, theirs in zip(*labels, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    (tmp_path / "mixed").mkdir()
    mixed = dataset(engine, [*known[:10], *episodes[10:]], tmp_path / "mixed")
    assert [example.answer for example in mixed.examples] == [example.answer for example in expected.examples]


def test_labels_sum_to_one_and_the_likeliest_comes_first(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    rng = np.random.default_rng(0)
    found = dataset(engine, choosing_episodes(engine, rng.dirichlet([0.5] * 4, 30).tolist()), tmp_path)
    for example in found.examples:
        probabilities = list(example.label.probabilities)
        assert sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert example.label.answers[0] == engine.answer_tokens(example.answer)
        assert example.label.choices == CHOICES


def test_choices_that_nothing_tells_apart_teach_nothing(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    sure = [[0.85, 0.05, 0.05, 0.05], [0.05, 0.85, 0.05, 0.05]] * 6
    unsure = [[0.26, 0.25, 0.25, 0.24]] * 5
    found = dataset(engine, choosing_episodes(engine, [*sure, *unsure]), tmp_path)
    assert len(found.examples) == len(sure)
    assert found.left_out == len(unsure)


def test_a_verifiers_word_stands_above_the_models(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    beliefs = [[0.9, 0.04, 0.03, 0.03]] * 6 + [[0.1, 0.84, 0.03, 0.03]] * 6
    first, *others = choosing_episodes(engine, beliefs)
    checked = replace(
        first, answer_text="bird", answer_token_ids=engine.answer_tokens("bird"), signals={"verifier": 1.0}
    )
    found = dataset(engine, [checked, *others], tmp_path)
    known = next(example for example in found.examples if example.prompt == tuple(first.prompt_token_ids))
    assert known.known
    assert known.answer == "bird"
    assert known.label == Label.of(engine.answer_tokens("bird"), CHOICES)


def test_what_somebody_said_stands_above_a_verifier_and_what_was_called_wrong_is_not_learned(
    tmp_path: Path,
) -> None:
    engine = ChoosingEngine()
    beliefs = [[0.9, 0.04, 0.03, 0.03]] * 7 + [[0.1, 0.84, 0.03, 0.03]] * 7
    shown, wrong, doubted, *others = choosing_episodes(engine, beliefs)
    tokens = engine.answer_tokens("bird")
    episodes = [
        replace(
            shown,
            answer_text="bird",
            answer_token_ids=tokens,
            signals={"feedback": 1.0, "verifier": 0.0},
            reward=1.0,
        ),
        replace(wrong, signals={"feedback": 0.0, "verifier": 1.0}, reward=0.0),
        replace(doubted, signals={"feedback": 0.25}, reward=0.25),
        *others,
    ]
    found = dataset(engine, episodes, tmp_path)
    learned = {example.id: example for example in found.examples}
    assert len(learned) == len(others) + 1
    assert not {wrong.id, doubted.id} & learned.keys()
    assert learned[shown.id].known
    assert learned[shown.id].label == Label.of(tokens, CHOICES)


def test_of_one_question_asked_twice_what_somebody_called_right_is_the_label(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    first, *others = scripted_episodes(engine, 30)
    told = replace(
        first,
        id=prompt_id("space", "default", (1,)),
        answer_text="shown",
        answer_token_ids=engine.answer_tokens("shown"),
        signals={"feedback": 0.75},
        reward=0.75,
        seen_at=first.seen_last,
    )
    found = dataset(engine, [replace(first, reward=1.0), told, *others], tmp_path)
    assert [example.answer for example in found.examples if example.prompt == told.prompt_token_ids] == [
        "shown"
    ]


def test_leanings_are_kept_for_the_days_that_follow(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    beliefs = [[0.94, 0.02, 0.02, 0.02], [0.04, 0.9, 0.03, 0.03]] * 8
    found = dataset(engine, choosing_episodes(engine, beliefs), tmp_path)
    ((choices, leans),) = found.leanings[0].items()
    assert choices == CHOICES
    assert leans == pytest.approx(np.log(np.mean(beliefs, axis=0) / 0.25))


def test_poor_free_answers_do_not_count_and_choices_do(tmp_path: Path) -> None:
    engine = ChoosingEngine()
    free = [replace(one, reward=0.3) for one in scripted_episodes(engine, 30)]
    held = choosing_episodes(engine, [[0.9, 0.04, 0.03, 0.03], [0.04, 0.9, 0.03, 0.03]] * 6)
    with pytest.raises(TooFewEpisodesError, match="0 episodes of reward"):
        dataset(engine, free, tmp_path)
    (tmp_path / "both").mkdir()
    found = dataset(engine, [*free, *held], tmp_path / "both")
    assert len(found.examples) == len(held)


def test_too_few_different_prompts_are_too_few(engine: ScriptedEngine, tmp_path: Path) -> None:
    (one,) = scripted_episodes(engine, 1)
    copies = [replace(one, id=prompt_id("space", "default", (n,))) for n in range(30)]
    with pytest.raises(TooFewEpisodesError, match="1 different prompts"):
        dataset(engine, copies, tmp_path)


def test_another_space_is_an_error_that_says_what_to_do(engine: ScriptedEngine, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatchError, match="same model"):
        dataset(engine, scripted_episodes(engine, 20), tmp_path, space="another")


def test_what_the_engine_cannot_be_asked_is_left_out(tmp_path: Path) -> None:
    engine = ScriptedEngine(max_model_len=200)
    episodes = scripted_episodes(engine, 39)
    long = replace(episodes[0], answer_token_ids=(65,) * 300)
    strange = replace(episodes[1], prompt_token_ids=(1, 2, 3))
    endless = replace(episodes[2], choices=("a" * 3_000, "b" * 3_000))
    found = dataset(engine, [long, strange, endless, *episodes[3:]], tmp_path)
    assert len(found.examples) == 36


def test_the_mean_latent_is_of_those_that_earned_their_place(engine: ScriptedEngine, tmp_path: Path) -> None:
    episodes = scripted_episodes(engine, 30)
    some = [replace(one, latent_earned=at % 3 == 0) for at, one in enumerate(episodes)]
    found = dataset(engine, some, tmp_path)
    expected = np.mean(
        [one.latent.astype(np.float16).astype(np.float32) for one in some if one.latent_earned], axis=0
    )
    assert found.mean_latent == pytest.approx(expected, abs=1e-4)


def test_more_than_a_night_can_use_leaves_the_newest_of_each_cluster(
    engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dataset.MOST", 30)
    episodes = scripted_episodes(engine, 60)
    found = dataset(engine, episodes, tmp_path)
    assert len(found.examples) == 30
    newest = {one.id for one in sorted(episodes, key=lambda one: one.created_at)[-30:]}
    assert {example.id for example in found.examples} == newest


def test_what_a_night_does_not_learn_from_costs_it_a_key_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.dataset.MOST", 24)
    engine = ScriptedEngine()
    long = (ord("x"),) * 1500
    peaks = []
    for count in (40, 160):
        episodes = [
            replace(one, prompt_token_ids=one.prompt_token_ids[:-12] + long + one.prompt_token_ids[-12:])
            for one in scripted_episodes(engine, count)
        ]
        folder = tmp_path / str(count)
        folder.mkdir()
        write_snapshot(episodes, folder / "snapshot")
        del episodes
        tracemalloc.start()
        try:
            found = dataset(engine, None, folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(found.examples) == 24
    of_a_prompt = 8 * len(long)
    assert peaks[1] - peaks[0] < (160 - 40) * of_a_prompt / 4
