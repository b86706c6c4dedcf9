"""One remembered success.

Owns the values that stores keep and nights read, and which prompts are the same one. Knows nothing of Qdrant
or of models.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class LatentMemoryError(Exception):
    """Base of what memory raises.

    LatentMemoryError
    ├── EpisodeRejectedError   an episode that must not be stored: shape, values, space
    ├── StoreUnavailableError  the store, or the server behind it, does not answer
    ├── RegistryError          priors: see memory/registry.py
    ├── ArchiveError           an archive that cannot be taken: see memory/archive.py
    ├── StateUnavailableError  the database of the state does not answer
    ├── NewerStateError        a state of a newer release
    └── NoRoomError            the disk is too full
    """


class EpisodeRejectedError(LatentMemoryError, ValueError):
    """An episode that must not be stored."""


class StoreUnavailableError(LatentMemoryError):
    """The store, or the server behind it, does not answer."""


FEEDBACK = "feedback"
"""Signal of an answer that somebody judged, which stands above all others."""
GOOD = 0.5
"""Feedback from which on an answer counts as right."""

TENANT = "default"
"""Whose memory it is where nobody says."""


def new_id(tenant: str = TENANT) -> str:
    """Return a fresh identifier of a tenant's episode, of a trace or of a run."""
    return own_id(tenant, uuid.uuid4())


def own_id(tenant: str, name: uuid.UUID) -> str:
    """Return the identifier of a tenant's own that stands for `name`.

    That of the default tenant is the name itself. Those of others are of version 8, and their last half is a
    digest of the first one and the tenant: so nobody can give something of theirs the id of another's, by an
    archive say, whatever they know of it.
    """
    if tenant == TENANT:
        return str(name)
    head = bytearray(name.bytes[:8])
    head[6] = 0x80 | head[6] & 0x0F
    tail = bytearray(hashlib.sha256(bytes(head) + tenant.encode()).digest()[:8])
    tail[0] = 0x80 | tail[0] & 0x3F
    return str(uuid.UUID(bytes=bytes(head + tail)))


def is_own_id(tenant: str, name: str) -> bool:
    """Return whether an identifier may be one of a tenant's, and so none of another's."""
    try:
        parsed = uuid.UUID(name)
    except ValueError:
        return False
    if tenant == TENANT:
        return parsed.version != 8
    return own_id(tenant, parsed) == str(parsed)


_PROMPTS = uuid.UUID("3c4b1b0e-6d0d-5d7a-9a53-0f7f4d6f2f11")


def prompt_id(space: str, tenant: str, prompt_token_ids: Sequence[int], held_to: str | None = None) -> str:
    """Return the id of the episode of a prompt: whoever asks it again finds the same one.

    A prompt is its rendered tokens, which hold messages, tools and template, and what its answer is held to:
    prose and the JSON of a schema are not answers to the same question, and their rewards do not compare.

    Args:
        space: Id of the latent space.
        tenant: Whose memory it is.
        prompt_token_ids: Rendered prompt, without latents.
        held_to: The grammar that holds the answer, as text; None: none.
    """
    named = [space, tenant, [int(token) for token in prompt_token_ids], held_to]
    return own_id(tenant, uuid.uuid5(_PROMPTS, json.dumps(named)))


def adopted_id(episode: "Episode", tenant: str) -> str:
    """Return the id under which a tenant keeps another one's episode, always the same.

    It is that of its own prompt, but where a grammar held the answer, for an episode does not tell which.
    """
    space, tokens = episode.space, episode.prompt_token_ids
    if tokens and episode.id == prompt_id(space, episode.tenant, tokens):
        return prompt_id(space, tenant, tokens)
    return own_id(tenant, uuid.uuid5(_PROMPTS, json.dumps([episode.tenant, episode.id])))


def prompt_digest(token_ids: Sequence[int]) -> str:
    """Return sixteen hex digits that name a rendered prompt."""
    return hashlib.sha256(np.asarray(token_ids, dtype=np.int64).tobytes()).hexdigest()[:16]


def now() -> datetime:
    """Return the current time with its zone, UTC."""
    return datetime.now(UTC)


LEAST_GAIN = 0.02
"""Least rise of the reward above the unsteered answer's that is a gain, by which a latent earns its place.
Less is a shade of confidence: the answer is served all the same, but others have nothing to learn from it."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One remembered success.

    Latents are absolute (`z*`), not deltas, so that a swapped prior leaves nothing stale behind.
    """

    space: str
    """Id of the latent space."""
    key: Array
    """(d,) norm 1."""
    latent: Array
    """(L, d) the refined latent z*; kept as float16. Where no latent earned its place: the start."""
    reward: float
    """Q of the answer, in [0, 1]."""
    signals: dict[str, float]
    """Named reward signals behind it, each in [0, 1]."""
    prompt_token_ids: tuple[int, ...]
    """Rendered prompt, without latents; (): none are kept (`memory/redaction.py`), of the answer neither."""
    answer_token_ids: tuple[int, ...]
    """Best answer, with its end-of-sequence token when the model ended it."""
    prompt_text: str
    answer_text: str
    latent_earned: bool = True
    """Whether the latent beat the unsteered answer. If not, the answer is replayed at night, and the latent
    is never recalled."""
    start_lift: float | None = None
    """Q of the answer to what recall and prior would have served, less Q of the unsteered one; None when
    they would have served nothing. Measures whether steering helps in this neighbourhood."""
    choices: tuple[str, ...] = ()
    """What a grammar held the answer to, when it was one of a few strings."""
    choice_log_probabilities: tuple[float, ...] = ()
    """Of each choice under no latent, said as a whole answer; (): not measured."""
    held_log_probabilities: tuple[float, ...] = ()
    """Of each choice under no latent, drawn by a grammar; (): not measured."""
    max_tokens: int | None = None
    """Most tokens that the request allowed an answer; None: not known."""
    tenant: str = TENANT
    plain_reward: float = 0.0
    """Q of the unsteered answer to the same prompt."""
    effort: str = "medium"
    search: str = "evolution"
    """Search that found the latent; `none`: exploring, or scored choices."""
    prior_version: str | None = None
    """Prior that was active when the latent was found."""
    trace_id: str | None = None
    id: str = field(default_factory=new_id)
    """The prompt's (`prompt_id`); adding another episode of that id merges both (`memory/merge.py`)."""
    created_at: datetime = field(default_factory=now)
    """When this answer, or its latent, was found."""
    seen: int = 1
    """How often this prompt came to be remembered."""
    seen_at: datetime | None = None
    """When it last did; None: at `created_at`."""

    @property
    def feedback(self) -> float | None:
        """What somebody said of the answer, in [0, 1]; None: nobody did."""
        return self.signals.get(FEEDBACK)

    def adopted(self, tenant: str) -> "Episode":
        """Return what another tenant remembers of it by consent.

        Versions of priors are each tenant's own, so it was found under none. The trace is named all the same:
        by it the episode is found again, once it is to be forgotten where it comes from.
        """
        return replace(self, tenant=tenant, id=adopted_id(self, tenant), prior_version=None)

    @property
    def retracted(self) -> bool:
        """Whether somebody called the answer wrong: then it is neither recalled nor learned."""
        return self.feedback is not None and self.feedback < GOOD

    @property
    def seen_last(self) -> datetime:
        """When the prompt last came to be remembered."""
        return self.seen_at or self.created_at

    def check(self, length: int, hidden_size: int) -> None:
        """Raise EpisodeRejectedError, naming the field, unless shapes and values are sound."""
        for name, array, shape in (
            ("key", self.key, (hidden_size,)),
            ("latent", self.latent, (length, hidden_size)),
        ):
            if array.shape != shape:
                raise EpisodeRejectedError(f"{name} has shape {array.shape}, expected {shape}")
            if not np.isfinite(array).all():
                raise EpisodeRejectedError(f"{name} holds NaN or infinity")
        if not 0.0 <= self.reward <= 1.0:
            raise EpisodeRejectedError(f"reward is {self.reward}, expected 0 to 1")
        if self.start_lift is not None and not -1.0 <= self.start_lift <= 1.0:
            raise EpisodeRejectedError(f"start_lift is {self.start_lift}, expected -1 to 1")
        if self.prompt_token_ids and not self.answer_token_ids:
            raise EpisodeRejectedError("answer_token_ids is empty")

    def summary(self) -> dict[str, Any]:
        """Return the parts that fit into JSON: everything but the vectors."""
        return {
            "id": self.id,
            "space": self.space,
            "tenant": self.tenant,
            "reward": self.reward,
            "plain_reward": self.plain_reward,
            "signals": self.signals,
            "latent_earned": self.latent_earned,
            "start_lift": self.start_lift,
            "choices": list(self.choices),
            "choice_log_probabilities": [float(value) for value in self.choice_log_probabilities],
            "held_log_probabilities": [float(value) for value in self.held_log_probabilities],
            "max_tokens": self.max_tokens,
            "prompt_text": self.prompt_text,
            "answer_text": self.answer_text,
            "prompt_token_ids": list(self.prompt_token_ids),
            "answer_token_ids": list(self.answer_token_ids),
            "effort": self.effort,
            "search": self.search,
            "prior_version": self.prior_version,
            "trace_id": self.trace_id,
            "created_at": self.created_at.isoformat(),
            "seen": self.seen,
            "seen_at": self.seen_last.isoformat(),
        }
