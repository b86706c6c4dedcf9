"""De-duplication and the three sides of a night."""

from dataclasses import replace

import numpy as np
import pytest

from memory.chains import chains
from memory.episode import Episode
from tests.worker.conftest import keyed
from worker.errors import TooFewEpisodesError
from worker.neighbourhood import deduplicated, prompt_digest, stack_keys
from worker.split import MIN_HOLDOUT, Split, split


def families(count: int, size: int, *, noise: float = 0.06, seed: int = 0) -> list[Episode]:
    """Return `count` groups of `size` near-twins whose keys are otherwise unrelated."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 64)) / 8
    return [
        keyed(centre + noise * rng.normal(size=64) / 8, (group, member))
        for group, centre in enumerate(centres)
        for member in range(size)
    ]


def sides(found: Split) -> list[tuple[Episode, ...]]:
    return [found.train, found.validation, found.holdout]


def test_no_near_twin_stands_on_another_side() -> None:
    found = split(families(20, 3), holdout_share=0.25, seed=0)
    assert sum(len(side) for side in sides(found)) == 60
    for one in sides(found):
        for other in sides(found):
            if one is not other:
                assert (stack_keys(one) @ stack_keys(other).T).max() <= found.twin_cosine


def test_near_twins_of_the_holdout_are_one_observation() -> None:
    found = split(families(20, 3), holdout_share=0.25, seed=0)
    families_held_out = [episode.prompt_token_ids[0] for episode in found.holdout]
    groups = dict(zip(families_held_out, found.holdout_groups, strict=True))
    assert len(set(found.holdout_groups)) == len(groups) == len(set(families_held_out)) >= MIN_HOLDOUT


def test_holdout_has_about_its_share() -> None:
    found = split(families(60, 1), holdout_share=0.25, seed=0)
    assert len(found.holdout) == 15


def test_split_depends_on_the_seed_only() -> None:
    episodes = families(20, 2)
    first, again, other = (
        split(e, holdout_share=0.3, seed=s) for e, s in ((episodes, 1), (episodes[::-1], 1), (episodes, 2))
    )
    assert [e.id for e in first.holdout] == [e.id for e in again.holdout]
    assert [e.id for e in first.holdout] != [e.id for e in other.holdout]


def test_of_one_prompt_the_best_answer_stays() -> None:
    key = np.ones(8, np.float32)
    poor, best = keyed(key, (1, 2), reward=0.6), keyed(key, (1, 2), reward=0.9)
    assert deduplicated([best, poor]) == deduplicated([poor, best]) == [best]


def test_prompts_of_the_same_key_are_one() -> None:
    key = np.ones(8, np.float32)
    assert len(deduplicated([keyed(key, (1,)), keyed(key + 1e-4 * np.eye(8)[0], (2,))])) == 1


def test_chains_of_near_twins_are_one_neighbourhood() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.5])
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert chains(keys, 0.99) == [[0, 1, 2], [3]]


def test_prompts_that_share_a_long_instruction_are_still_split() -> None:
    """All pairs are above 0.97, so only closer ones count as near-twins."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=64)
    found = split(
        [keyed(shared + 0.15 * rng.normal(size=64), (number,)) for number in range(40)],
        holdout_share=0.25,
        seed=0,
    )
    assert found.twin_cosine > 0.97
    assert len(found.holdout) == 10


def test_prompts_that_were_trained_on_do_not_judge() -> None:
    episodes = families(40, 1)
    seen = {prompt_digest(episode) for episode in episodes[:25]}
    found = split(episodes, holdout_share=0.25, seed=0, seen=seen)
    assert found.unseen
    assert not seen & {prompt_digest(episode) for episode in (*found.holdout, *found.validation)}
    assert seen < {prompt_digest(episode) for episode in found.train}


def test_a_near_twin_of_a_trained_prompt_does_not_judge_either() -> None:
    episodes = families(20, 2)
    seen = {prompt_digest(episode) for episode in episodes if episode.prompt_token_ids[1] == 0}
    assert not split(episodes, holdout_share=0.25, seed=0, seen=seen).unseen


def test_a_trained_prompt_asked_again_in_other_words_does_not_judge() -> None:
    """A date in the prompt, say: the same key, other tokens, and the newer one is kept."""
    episodes = families(40, 1)
    seen = {prompt_digest(episode) for episode in episodes[:25]}
    again = [
        replace(e, id=f"{e.id}-again", prompt_token_ids=(*e.prompt_token_ids, 7), reward=0.9)
        for e in episodes[:25]
    ]
    found = split([*episodes, *again], holdout_share=0.25, seed=0, seen=seen)
    assert found.unseen
    judges = {episode.id for episode in (*found.holdout, *found.validation)}
    assert judges <= {episode.id for episode in episodes[25:]}


def test_holdout_of_seen_prompts_only_is_said() -> None:
    episodes = families(20, 1)
    found = split(episodes, holdout_share=0.25, seed=0, seen={prompt_digest(episode) for episode in episodes})
    assert not found.unseen
    assert len(found.holdout) >= MIN_HOLDOUT


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_prompts_are_said(count: int) -> None:
    with pytest.raises(TooFewEpisodesError, match=f"{count} different prompts"):
        split(families(count, 1) if count else [], holdout_share=0.25, seed=0)


def test_prompts_that_are_all_alike_are_said() -> None:
    key = np.eye(16)[0]
    alike = [keyed(key + 0.06 * np.eye(16)[1 + number % 15], (number,)) for number in range(15)]
    with pytest.raises(TooFewEpisodesError, match="too similar"):
        split(alike, holdout_share=0.25, seed=0)


def test_the_fewest_prompts_fill_every_side() -> None:
    found = split(families(9, 1), holdout_share=0.25, seed=0)
    assert [len(side) for side in sides(found)] == [2, 2, 5]


def test_digest_is_of_tokens_not_of_the_episode() -> None:
    episode = keyed(np.ones(4, np.float32), (1, 2))
    assert prompt_digest(episode) == prompt_digest(replace(episode, id="other", reward=0.1))
