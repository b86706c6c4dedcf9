"""How an episode is laid out in a store.

Owns the payload's field names, the float16 rounding of latents, and the check of a batch before
anything of it is written. Knows nothing of the two stores that use it.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from memory.episode import Array, Episode, EpisodeRejectedError, is_own_id
from memory.listing import Summary
from memory.store import Neighbour, Outline

KEY = "key"
LATENT = "latent"
"""A vector of float16 rows; in Qdrant Edge a field of the payload."""
TENANT = "tenant"
REWARD = "reward"
CREATED_AT = "created_at"
EFFORT = "effort"
SEARCH = "search"
TRACE = "trace_id"
EARNED, START_LIFT, PRIOR_VERSION, CHOICES, CHOICE_LOGS, HELD_LOGS = NEIGHBOUR_FIELDS = (
    "latent_earned",
    "start_lift",
    "prior_version",
    "choices",
    "choice_log_probabilities",
    "held_log_probabilities",
)
REDACTED = "redacted"
"""There, and true, where no tokens are kept."""
OUTLINE_FIELDS = (REWARD, CREATED_AT, CHOICES, "seen", "seen_at", REDACTED)

LATENT_TYPE = np.dtype("<f2")
"""Of latents in a store."""

COSINE_ROUNDING = 1e-6
"""A float32 cosine of two equal keys comes out as 0.9999999: comparisons with a floor allow this much."""

_UNIT_NORM_TOLERANCE = 1e-2
_MOST_NATS = float(np.finfo(np.float32).max)
"""A log-probability that an engine gives is above the negative of it."""
_TEXTS = ("prompt_text", "answer_text", "tenant", "effort", SEARCH)


def check_batch(episodes: Sequence[Episode], *, space: str, length: int, hidden_size: int) -> None:
    """Raise EpisodeRejectedError, naming the field, unless every episode may be stored."""
    for episode in episodes:
        _check_space(episode, space)
        if not is_own_id(episode.tenant, episode.id):
            raise EpisodeRejectedError(f"id is {episode.id!r}, which is none of tenant {episode.tenant!r}")
        for name in (KEY, LATENT):
            if not isinstance(getattr(episode, name), np.ndarray):
                raise EpisodeRejectedError(f"{name} is no numpy array")
        episode.check(length, hidden_size)
        norm = float(np.linalg.norm(episode.key))
        if abs(norm - 1.0) > _UNIT_NORM_TOLERANCE:
            raise EpisodeRejectedError(f"key has norm {norm:.4g}, expected 1")
        if not np.isfinite(to_float16(episode.latent)).all():
            raise EpisodeRejectedError("latent holds values that float16 cannot")
        _check_fields(episode)


def is_id(episode_id: str) -> bool:
    """Return whether this may be an episode's id: the usual text of a UUID."""
    try:
        return str(uuid.UUID(episode_id)) == episode_id
    except (ValueError, AttributeError, TypeError):
        return False


def payload_of(episode: Episode) -> dict[str, Any]:
    """Return everything but id and vectors, as JSON values."""
    payload = episode.summary()
    del payload["id"]
    payload["reward"] = float(episode.reward)
    payload["plain_reward"] = float(episode.plain_reward)
    payload["start_lift"] = None if episode.start_lift is None else float(episode.start_lift)
    payload["signals"] = {name: float(value) for name, value in episode.signals.items()}
    payload["prompt_token_ids"] = [int(token) for token in episode.prompt_token_ids]
    payload["answer_token_ids"] = [int(token) for token in episode.answer_token_ids]
    if not episode.prompt_token_ids:
        payload[REDACTED] = True
    return payload


def vectors_of(episode: Episode) -> dict[str, Any]:
    """Return the named vectors as lists; the latent rounded to float16, so that all stores agree."""
    return {
        KEY: np.asarray(episode.key, np.float32).tolist(),
        LATENT: to_float16(episode.latent).astype(np.float32).tolist(),
    }


def to_float16(latent: Array) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return a latent as it is stored; infinite where it does not fit."""
    with np.errstate(over="ignore"):
        return latent.astype(LATENT_TYPE)


def episode_of(episode_id: str, payload: Mapping[str, Any], key: ArrayLike, latent: ArrayLike) -> Episode:
    """Return the episode that `payload_of` and `vectors_of` took apart."""
    fields = {name: value for name, value in payload.items() if name != REDACTED}
    if "refiner" in fields:  # its name in older payloads
        fields[SEARCH] = fields.pop("refiner")
    fields["prompt_token_ids"] = tuple(fields["prompt_token_ids"])
    fields["answer_token_ids"] = tuple(fields["answer_token_ids"])
    for name in (CHOICES, CHOICE_LOGS, HELD_LOGS):
        fields[name] = tuple(fields.get(name) or ())
    for name in (CHOICE_LOGS, HELD_LOGS):  # merges of earlier builds lost choices and kept these
        if len(fields[name]) != len(fields[CHOICES]):
            fields[name] = ()
    for name in (CREATED_AT, "seen_at"):  # the latter is not there before there was a count
        if fields.get(name) is not None:
            fields[name] = datetime.fromisoformat(fields[name])
    return Episode(id=episode_id, key=_array(key), latent=_array(latent), **fields)


def summary_of(episode_id: str, payload: Mapping[str, Any]) -> Summary:
    """Return what `Episode.summary` does, out of a payload alone; an older one may lack fields."""
    return episode_of(episode_id, payload, (), ()).summary()


def neighbour_of(episode_id: str, payload: Mapping[str, Any], similarity: float) -> Neighbour:
    """Return what `NEIGHBOUR_FIELDS` of a payload tell; an older payload may lack them."""
    return Neighbour(
        episode_id,
        similarity,
        payload.get(EARNED, True),
        payload.get(START_LIFT),
        payload.get(PRIOR_VERSION),
        tuple(payload.get(CHOICES) or ()),
        tuple(payload.get(CHOICE_LOGS) or ()),
        tuple(payload.get(HELD_LOGS) or ()),
    )


def outline_of(episode_id: str, payload: Mapping[str, Any]) -> Outline:
    """Return what `OUTLINE_FIELDS` of a payload tell; an older payload may lack the last three."""
    created_at = datetime.fromisoformat(payload[CREATED_AT])
    seen_at = payload.get("seen_at")
    return Outline(
        id=episode_id,
        reward=payload[REWARD],
        held_to_choices=bool(payload.get("choices")),
        seen=payload.get("seen", 1),
        seen_last=datetime.fromisoformat(seen_at) if seen_at else created_at,
        created_at=created_at,
        replayable=not payload.get(REDACTED, False),
    )


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float32)


def _check_space(episode: Episode, space: str) -> None:
    if episode.space != space:
        raise EpisodeRejectedError(f"space is {episode.space}, this store keeps {space}")


def _check_fields(episode: Episode) -> None:
    if not is_id(episode.id):
        raise EpisodeRejectedError(f"id is {episode.id!r}, expected a UUID")
    for name, time in (("created_at", episode.created_at), ("seen_at", episode.seen_last)):
        if not isinstance(time, datetime) or time.tzinfo is None:
            raise EpisodeRejectedError(f"{name} has no time zone")
        if (time.utcoffset() or timedelta()) % timedelta(minutes=1):  # stores would not find it by its time
            raise EpisodeRejectedError(f"{name} has a zone of odd seconds")
        try:
            time.astimezone(UTC)
        except OverflowError as error:
            raise EpisodeRejectedError(f"{name} is {time.isoformat()}, which UTC has no year for") from error
    if episode.seen < 1:
        raise EpisodeRejectedError(f"seen is {episode.seen}, expected 1 or more")
    if not 0.0 <= episode.plain_reward <= 1.0:
        raise EpisodeRejectedError(f"plain_reward is {episode.plain_reward}, expected 0 to 1")
    for name, value in episode.signals.items():
        if not 0.0 <= value <= 1.0:
            raise EpisodeRejectedError(f"signals holds {name}={value}, expected 0 to 1")
    for name in ("prompt_token_ids", "answer_token_ids"):
        if not all(_is_token(token) for token in getattr(episode, name)):
            raise EpisodeRejectedError(f"{name} holds what is no token id")
    for name in _TEXTS:
        if not _is_text(getattr(episode, name)):
            raise EpisodeRejectedError(f"{name} is no text that UTF-8 can hold")
    for name in (CHOICE_LOGS, HELD_LOGS):
        logs = getattr(episode, name)
        if logs and not (len(logs) == len(episode.choices) and all(-_MOST_NATS <= one <= 0 for one in logs)):
            raise EpisodeRejectedError(f"{name} are not one log-probability for each choice")
    if episode.max_tokens is not None and episode.max_tokens < 1:
        raise EpisodeRejectedError(f"max_tokens is {episode.max_tokens}, expected 1 or more")
    if not episode.tenant:
        raise EpisodeRejectedError("tenant is empty")


def _is_token(token: object) -> bool:
    known = isinstance(token, int | np.integer) and not isinstance(token, bool)
    return known and 0 <= int(token) < 2**31  # type: ignore[call-overload]


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
