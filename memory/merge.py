"""One episode per prompt.

Owns what becomes of two episodes of one prompt. Knows nothing of how stores keep them, but that a prompt's
episodes share an id (`memory/episode.py`), or, where builds before there were such ids wrote them, a key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

from memory.episode import Episode, prompt_id
from memory.redaction import Redaction
from memory.store import EpisodeStore

_RANDOM = 4
"""Version of the UUIDs that earlier builds gave: one for each answer, not for each prompt."""
_SAME_COSINE = 0.999
_LOOKED_AT = 64
"""Older episodes of one prompt that are found at once."""


def merged(before: Episode, after: Episode) -> Episode:
    """Return what is kept of a prompt's episode and a later one of the same prompt.

    * The better answer stays: the one that more signals have judged, of equally many the one of the higher
      reward, of equal ones the earlier.
    * The later latent stays, for it started from what is served now; but one that earned its place is not
      given up for one that did not while the same prior is active.
    * `created_at` is when the answer or the first latent that earned its place was found, so that a night
      counts what it can learn from, and not how often somebody asked.
    * Choices stay, for they are the same: what holds an answer is part of the id. Not every request names
      them, such as one that asks for log-probabilities, or a demonstration.
    * Each is counted once, also when a write is repeated because nobody knew whether it had arrived.
    * What somebody said of an answer stands above all of this, the later word above the earlier:

          after        before       answers     what is kept
          called good  any          the same    before, with the word
          called good  any          differ      after; the latent has led elsewhere and is not recalled
          called bad   any          the same    before, with the word; neither recalled nor learned
          called bad   called bad   differ      after
          called bad   others       differ      before: the word is about another answer
          no word      called good  the same    before, with the latent of the rules above
          no word      called good  differ      before
          no word      called bad   the same    before
          no word      called bad   differ      after
    """
    if after.feedback is not None:
        return _told(before, after)
    if before.feedback is not None:
        return _after_feedback(before, after)
    return _found_again(before, after)


def _told(before: Episode, after: Episode) -> Episode:
    """Return what is kept of an episode once somebody has said something."""
    if _same(before, after):
        return replace(
            before,
            reward=after.reward,
            signals=before.signals | after.signals,
            latent_earned=before.latent_earned and not after.retracted,
            created_at=before.created_at if after.retracted else after.created_at,
            seen_at=before.seen_last,
        )
    if after.retracted and not before.retracted:
        return before
    return replace(
        after,
        latent=before.latent,
        latent_earned=False,
        start_lift=before.start_lift,
        prior_version=before.prior_version,
        choices=after.choices or before.choices,
        choice_log_probabilities=after.choice_log_probabilities or before.choice_log_probabilities,
        held_log_probabilities=after.held_log_probabilities or before.held_log_probabilities,
        seen=before.seen,
        seen_at=before.seen_last,
    )


def _after_feedback(before: Episode, after: Episode) -> Episode:
    """Return what is kept of an episode of which somebody has said something, once its prompt came again."""
    found = _found_again(before, after)
    if before.retracted and not _same(before, after):
        kept = after
    elif before.retracted or not _same(before, after):
        kept = before
    else:
        kept = replace(
            before,
            latent=found.latent,
            latent_earned=found.latent_earned,
            prior_version=found.prior_version,
            start_lift=found.start_lift,
        )
    return replace(
        kept,
        choices=found.choices,
        choice_log_probabilities=found.choice_log_probabilities,
        held_log_probabilities=found.held_log_probabilities,
        seen=found.seen,
        seen_at=found.seen_at,
    )


def _same(one: Episode, other: Episode) -> bool:
    return one.answer_text.strip() == other.answer_text.strip()


def _found_again(before: Episode, after: Episode) -> Episode:
    better = after if _rank(after) > _rank(before) else before
    same_prior = before.prior_version == after.prior_version
    latent = before if same_prior and before.latent_earned and not after.latent_earned else after
    lift = after.start_lift if after.start_lift is not None or not same_prior else before.start_lift
    improved = (after.latent_earned and not before.latent_earned) or (
        better is after and after.answer_token_ids != before.answer_token_ids
    )
    again = after.seen_last > before.seen_last
    return replace(
        better,
        id=after.id,
        choices=after.choices or before.choices,
        choice_log_probabilities=after.choice_log_probabilities or before.choice_log_probabilities,
        held_log_probabilities=after.held_log_probabilities or before.held_log_probabilities,
        latent=latent.latent,
        latent_earned=latent.latent_earned,
        prior_version=latent.prior_version,
        start_lift=lift,
        created_at=after.created_at if improved else before.created_at,
        seen=before.seen + after.seen if again else before.seen,
        seen_at=after.seen_last if again else before.seen_last,
    )


def merge_all(episodes: Iterable[Episode], known: Iterable[Episode]) -> list[Episode]:
    """Return one episode for each id among `episodes`, merged in order with those that are `known` by it."""
    kept: dict[str, Episode] = {}
    before = {episode.id: episode for episode in known}
    for episode in episodes:
        earlier = kept.get(episode.id, before.get(episode.id))
        kept[episode.id] = episode if earlier is None else merged(earlier, episode)
    return list(kept.values())


def fold(
    store: EpisodeStore, episodes: Sequence[Episode], redact: Redaction
) -> tuple[list[Episode], list[str]]:
    """Return what adding `episodes` to `store` has to write, and ids of what that takes the place of.

    All of them are redacted before they are compared, so that like answers stay alike.

    Raises:
        StoreUnavailableError: the store failed.
    """
    known = {episode.id: episode for episode in store.fetch(list({episode.id for episode in episodes}))}
    replaced: list[str] = []
    for episode in {episode.id: episode for episode in episodes}.values():
        if UUID(episode.id).version == _RANDOM:
            continue
        older = _of_earlier_builds(store, episode)
        replaced += (one.id for one in older)
        # Beside a known one they are what an add that ended half-way has merged and not deleted.
        if older and episode.id not in known:
            known[episode.id] = _as_one(older, episode.id)
    return merge_all(map(redact, episodes), map(redact, known.values())), replaced


def _of_earlier_builds(store: EpisodeStore, episode: Episode) -> list[Episode]:
    """Return those that answer the same question for certain: they do not say which grammar held them."""
    free = prompt_id(episode.space, episode.tenant, episode.prompt_token_ids)
    if not episode.choices and episode.id != free:
        return []
    near = store.near(episode.key, tenant=episode.tenant, k=_LOOKED_AT, floor=_SAME_COSINE)
    found = store.fetch([one.id for one in near if UUID(one.id).version == _RANDOM])
    return [
        one
        for one in found
        if one.prompt_token_ids == episode.prompt_token_ids and one.choices == episode.choices
    ]


def _as_one(episodes: Sequence[Episode], episode_id: str) -> Episode:
    first, *later = sorted(episodes, key=lambda episode: episode.created_at)
    kept = replace(first, id=episode_id)
    for episode in later:
        kept = merged(kept, replace(episode, id=episode_id))
    return kept


def _rank(episode: Episode) -> tuple[int, float]:
    return len(episode.signals), episode.reward
