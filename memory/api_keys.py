"""API keys: who may ask the server for what, and whose memory they see.

Owns the table of them, what a token looks like and how it is kept: as an argon2 hash, so that whoever reads
the database cannot use it. Knows nothing of HTTP or of what the scopes open (`server/api/scopes.py`). What is
called a key without more words is a retrieval key, which this is not.

A token is `le-ID-SECRET`. The id finds the row; the secret, of 256 random bits, is shown once.
"""

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from limits import RateLimitItem, parse
from sqlalchemy import Connection, insert, or_, select, update

from memory.database import Database
from memory.episode import TENANT, LatentMemoryError, now
from memory.free_space import UNLIMITED, FreeSpace
from memory.schema import api_keys

Scope = Literal["infer", "memory:read", "memory:write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may do: ask the model, read what is remembered, change that, and everything."""

MOST_TENANTS = 256
"""Of whom a key works, in one state: a gateway watches over the nights and priors of each."""
MOST_LETTERS = 128
"""Longest name of a key."""

_ID = re.compile(r"[0-9a-f]{16}")
_TOKEN = re.compile(r"le-([0-9a-f]{16})-([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LIMIT = re.compile(r"[1-9][0-9]{0,5}/(?:second|minute|hour|day)")

# OWASP's least for argon2id. The secrets cannot be guessed whatever the hash costs, so it need not cost more.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


class ApiKeyRejectedError(LatentMemoryError, ValueError):
    """A key that cannot be made as it was asked for; `param` names the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownApiKeyError(LatentMemoryError):
    """There is no key of that id, or it is revoked."""


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key; not its secret."""

    id: str
    name: str
    tenant: str
    scopes: tuple[Scope, ...]
    rate_limit: str | None
    """Most requests, such as `60/minute`; None: any number."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    hash: str = field(repr=False)

    def works_at(self, moment: datetime) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)

    def to_json(self) -> dict[str, Any]:
        """Return what may be shown of it."""
        return {
            "id": self.id,
            "name": self.name,
            "tenant": self.tenant,
            "scopes": list(self.scopes),
            "rate_limit": self.rate_limit,
            "created_at": self.created_at.isoformat(),
            "expires_at": self.expires_at.isoformat() if self.expires_at else None,
            "revoked_at": self.revoked_at.isoformat() if self.revoked_at else None,
        }


class ApiKeys:
    """The API keys of one state. Any number of processes may read and write at once; calls block.

    Rows stay when keys are revoked: a server that once asked for a key never opens again by itself.
    """

    def __init__(self, state: Database, room: FreeSpace = UNLIMITED) -> None:
        self._state, self._room = state, room

    def create(
        self,
        name: str,
        scopes: Collection[str],
        *,
        tenant: str = TENANT,
        rate_limit: str | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with its token, which nobody can tell afterwards.

        Args:
            name: What people know it by.
            scopes: Some of `SCOPES`.
            tenant: Whose memory it works on; a new name is a new tenant.
            rate_limit: Such as `60/minute`; None: any number of requests.
            expires_at: From when on it does not work; None: never.

        Raises:
            ApiKeyRejectedError: naming the field.
            StateUnavailableError, NoRoomError: there is no new key.
        """
        name = name.strip()
        if not 0 < len(name) <= MOST_LETTERS or not name.isprintable():
            raise ApiKeyRejectedError(f"name: give 1 to {MOST_LETTERS} printable letters", "name")
        unknown = set(scopes) - set(SCOPES)
        if unknown or not scopes:
            raise ApiKeyRejectedError(f"scopes: give some of {', '.join(SCOPES)}", "scopes")
        check_tenant(tenant)
        if rate_limit is not None:
            check_rate_limit(rate_limit)
        moment = now()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= moment):
            raise ApiKeyRejectedError("expires_at: give a later time, with its zone", "expires_at")
        key_id = secrets.token_hex(8)
        token, hashed = _new_token(key_id)
        key = ApiKey(
            id=key_id,
            name=name,
            tenant=tenant,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            rate_limit=rate_limit,
            created_at=moment,
            expires_at=expires_at,
            revoked_at=None,
            hash=hashed,
        )
        self._room.demand("API keys", reserve=True)
        with self._state.write() as connection:
            known = _tenants(connection)
            if tenant not in known and len(known) >= MOST_TENANTS:
                raise ApiKeyRejectedError(
                    f"tenant: there are {MOST_TENANTS} already; one goes when none of its keys works",
                    "tenant",
                )
            connection.execute(insert(api_keys).values(vars(key) | {"scopes": list(key.scopes)}))
        return key, token

    def all(self, tenant: str | None = None) -> list[ApiKey]:
        """Return the keys of a tenant, or all of them, revoked ones included, newest first.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        query = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
        if tenant is not None:
            query = query.filter_by(tenant=tenant)
        with self._state.read() as connection:
            return [_key_of(row) for row in connection.execute(query)]

    def get(self, key_id: str) -> ApiKey | None:
        """Return a key, revoked or not; None when there is none of that id.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        if not _ID.fullmatch(key_id):
            return None
        with self._state.read() as connection:
            row = connection.execute(select(api_keys).filter_by(id=key_id)).one_or_none()
        return None if row is None else _key_of(row)

    def rotate(self, key_id: str) -> tuple[ApiKey, str]:
        """Give a key a new secret and return it with its new token; the old one works no more.

        Raises:
            UnknownApiKeyError: there is none of that id, or it is revoked.
            StateUnavailableError, NoRoomError: the old one stays.
        """
        token, hashed = _new_token(key_id)
        self._change(key_id, hash=hashed)
        return replace(self._known(key_id), hash=hashed), token

    def revoke(self, key_id: str) -> ApiKey:
        """Let a key work no more and return it.

        Raises:
            UnknownApiKeyError: there is none of that id, or it was revoked before.
            StateUnavailableError, NoRoomError: it still works.
        """
        self._change(key_id, revoked_at=now())
        return self._known(key_id)

    def exist(self) -> bool:
        """Return whether there ever was a key.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self._state.read() as connection:
            return connection.scalar(select(api_keys.c.id).limit(1)) is not None

    def tenants(self) -> list[str]:
        """Return the default tenant and all of whom a key works, in the order of their names.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self._state.read() as connection:
            return sorted(_tenants(connection))

    def named(self) -> list[str]:
        """Return the default tenant and all that keys were ever made for: what they have may still be there.

        Raises:
            StateUnavailableError: the database does not answer.
        """
        with self._state.read() as connection:
            return sorted({TENANT, *connection.scalars(select(api_keys.c.tenant).distinct())})

    def _change(self, key_id: str, **values: Any) -> None:
        working = (api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        known = _ID.fullmatch(key_id) is not None
        with self._state.write() as connection:
            if not known or not connection.execute(update(api_keys).where(*working).values(values)).rowcount:
                raise UnknownApiKeyError(f"there is no API key {key_id!a} that works")

    def _known(self, key_id: str) -> ApiKey:
        key = self.get(key_id)
        if key is None:
            raise UnknownApiKeyError(f"there is no API key {key_id!a}")
        return key


def id_of(token: str) -> str | None:
    """Return the id that a token carries; None: it is none of ours."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def is_token_of(key: ApiKey, token: str) -> bool:
    """Return whether a token is that of a key; slow on purpose."""
    try:
        return _hasher.verify(key.hash, token)
    except (VerificationError, InvalidHashError):
        return False


def check_tenant(tenant: str) -> None:
    """Raise ApiKeyRejectedError unless a tenant may be called so."""
    if not _TENANT.fullmatch(tenant):
        raise ApiKeyRejectedError(
            "tenant: give 1 to 63 small letters, digits and hyphens, a hyphen neither first nor last",
            "tenant",
        )


def check_rate_limit(text: str) -> RateLimitItem:
    """Return a rate limit as the library counts it; ApiKeyRejectedError where it is none."""
    if not _LIMIT.fullmatch(text):
        raise ApiKeyRejectedError(
            "rate_limit: give a number per second, minute, hour or day: 60/minute", "rate_limit"
        )
    return parse(text)


def _tenants(connection: Connection) -> set[str]:
    works = (
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now()),
    )
    return {TENANT, *connection.scalars(select(api_keys.c.tenant).where(*works).distinct())}


def _new_token(key_id: str) -> tuple[str, str]:
    """Return a new token for a key, and its hash."""
    token = f"le-{key_id}-{secrets.token_urlsafe(32)}"
    return token, _hasher.hash(token)


def _key_of(row: Any) -> ApiKey:
    values = dict(row._mapping)
    return ApiKey(**values | {"scopes": tuple(values["scopes"])})
