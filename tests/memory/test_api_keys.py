"""API keys: what is kept of them, on SQLite and on PostgreSQL."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from memory import api_keys
from memory.api_keys import (
    ApiKeyRejectedError,
    ApiKeys,
    UnknownApiKeyError,
    check_rate_limit,
    check_tenant,
    id_of,
    is_token_of,
)
from memory.episode import now
from memory.state import State


def test_a_key_is_known_by_its_token_and_nothing_kept_tells_it(state: State, state_url: str) -> None:
    key, token = ApiKeys(state).create("app", ["infer", "memory:read"], tenant="acme", rate_limit="60/minute")
    assert id_of(token) == key.id
    with State(state_url) as other_process:
        known = ApiKeys(other_process).get(key.id)
        assert known == key
        assert (known.tenant, known.scopes, known.rate_limit) == (
            "acme",
            ("infer", "memory:read"),
            "60/minute",
        )
        assert is_token_of(known, token)
        assert not is_token_of(known, f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}")
        with other_process.read() as connection:
            (row,) = connection.execute(text("SELECT * FROM api_keys"))
    secret = token.rpartition("-")[2]
    assert not any(secret[at : at + 8] in str(row) for at in range(len(secret) - 8))
    assert str(row.hash).startswith("$argon2id$")
    assert "hash" not in str(key)
    assert "hash" not in key.to_json()


def test_a_rotated_key_has_another_token_and_is_else_the_same(state: State) -> None:
    keys = ApiKeys(state)
    key, first = keys.create("app", ["infer"])
    rotated, second = keys.rotate(key.id)
    assert {**rotated.to_json()} == key.to_json()
    assert keys.get(key.id) == rotated
    assert is_token_of(rotated, second)
    assert not is_token_of(rotated, first)
    assert id_of(second) == id_of(first)


def test_a_revoked_key_works_no_more_and_stays_in_the_list(state: State) -> None:
    keys = ApiKeys(state)
    assert not keys.exist()
    key, _ = keys.create("app", ["infer"])
    other, _ = keys.create("other", ["admin"], tenant="acme")
    assert key.works_at(now())
    assert not keys.revoke(key.id).works_at(now())
    for again in (keys.revoke, keys.rotate):
        with pytest.raises(UnknownApiKeyError):
            again(key.id)
    assert [(one.name, one.revoked_at is None) for one in keys.all()] == [("other", True), ("app", False)]
    assert keys.all("acme") == [other]
    assert keys.exist()
    assert keys.tenants() == ["acme", "default"]


def test_a_tenant_none_of_whose_keys_works_makes_room_for_another(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MOST_TENANTS", 3)
    keys = ApiKeys(state)
    first, _ = keys.create("app", ["infer"], tenant="acme")
    keys.create("app", ["infer"], tenant="shop")
    for _ in range(2):
        with pytest.raises(ApiKeyRejectedError, match="tenant: there are 3"):
            keys.create("app", ["infer"], tenant="desk")
        second, _ = keys.create("another", ["infer"], tenant="acme")
        keys.revoke(first.id)
        first = second
    keys.revoke(first.id)
    assert keys.tenants() == ["default", "shop"]
    assert keys.named() == ["acme", "default", "shop"]
    soon = now() + timedelta(seconds=30)
    keys.create("app", ["infer"], tenant="desk", expires_at=soon)
    with pytest.raises(ApiKeyRejectedError):
        keys.create("app", ["infer"], tenant="acme")
    monkeypatch.setattr(api_keys, "now", lambda: soon)
    assert keys.tenants() == ["default", "shop"]
    keys.create("app", ["infer"], tenant="acme")
    assert keys.tenants() == ["acme", "default", "shop"]


@pytest.mark.parametrize("name", ["", "no", "0123456789abcdeg", "0123456789abcdef", "\0", "' OR 1=1 --"])
def test_names_of_no_key_are_told_as_unknown(state: State, name: str) -> None:
    keys = ApiKeys(state)
    assert keys.get(name) is None
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(UnknownApiKeyError):
            change(name)


def test_an_expired_key_does_not_work(state: State) -> None:
    key, _ = ApiKeys(state).create("app", ["infer"], expires_at=now() + timedelta(hours=1))
    assert key.works_at(now())
    assert not key.works_at(now() + timedelta(hours=1, seconds=1))


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"name": " "}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["infer", "all"]}, "scopes"),
        ({"tenant": ""}, "tenant"),
        ({"rate_limit": "fast"}, "rate_limit"),
        ({"expires_at": now() - timedelta(seconds=1)}, "expires_at"),
        ({"expires_at": now().replace(tzinfo=None) + timedelta(days=1)}, "expires_at"),
    ],
)
def test_what_cannot_be_a_key_is_refused_naming_the_field(
    state: State, changed: dict[str, object], param: str
) -> None:
    keys = ApiKeys(state)
    with pytest.raises(ApiKeyRejectedError, match=param) as refused:
        keys.create(**{"name": "app", "scopes": ["infer"]} | changed)  # type: ignore[arg-type]
    assert refused.value.param == param
    assert keys.all() == []


@given(st.text(max_size=70))
def test_a_tenant_is_always_the_name_of_one_folder(name: str) -> None:
    try:
        check_tenant(name)
    except ApiKeyRejectedError:
        return
    assert name.isascii()
    assert name == name.lower()
    assert 0 < len(name) <= 63
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,7}/(second|minute|hour|day|month)", fullmatch=True))
def test_a_rate_limit_that_is_taken_can_be_counted(text: str) -> None:
    try:
        limit = check_rate_limit(text)
    except ApiKeyRejectedError:
        return
    assert limit.amount == int(text.partition("/")[0]) > 0
    assert limit.GRANULARITY.name == text.partition("/")[2]


@given(st.text(max_size=80))
def test_texts_that_are_no_token_carry_no_id(text: str) -> None:
    assert id_of(text) is None
