"""Names of tenants' parts, and ids that are a tenant's own, whoever the tenants are."""

from pathlib import Path
from uuid import UUID

from hypothesis import assume, given
from hypothesis import strategies as st

from memory.api_keys import check_tenant
from memory.episode import TENANT, is_own_id, own_id, prompt_id
from memory.registry import PriorRegistry
from memory.state import State
from memory.tenants import parted, partition

TENANTS = st.just(TENANT) | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
SPACES = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z._-]{0,16}", fullmatch=True)
NAMES = st.uuids(version=4) | st.uuids(version=5)


@given(SPACES, SPACES, TENANTS, TENANTS)
def test_a_part_tells_its_space_and_its_tenant_and_no_two_share_one(
    space: str, other_space: str, tenant: str, other: str
) -> None:
    check_tenant(tenant)
    assert parted(partition(space, tenant)) == (space, tenant)
    same = (space, tenant) == (other_space, other)
    assert (partition(space, tenant) == partition(other_space, other)) == same


def test_the_default_tenants_part_is_the_space_itself_and_all_may_have_priors(
    state: State, tmp_path: Path
) -> None:
    assert partition("space-a", TENANT) == "space-a"
    for tenant in (TENANT, "acme", "a-1"):
        part = partition("space-a", tenant)
        assert PriorRegistry(tmp_path, part, state).root.name == part


@given(TENANTS, TENANTS, NAMES)
def test_what_is_one_tenants_own_is_no_others(tenant: str, other: str, name: UUID) -> None:
    assume(tenant != other)
    own = own_id(tenant, name)
    assert is_own_id(tenant, own)
    assert not is_own_id(other, own)
    assert own_id(tenant, name) == own


@given(TENANTS, TENANTS, st.lists(st.integers(0, 300), max_size=20))
def test_a_prompt_has_an_id_in_each_tenant_that_is_the_tenants_own(
    tenant: str, other: str, tokens: list[int]
) -> None:
    found = prompt_id("space-a", tenant, tokens)
    assert is_own_id(tenant, found)
    assert (prompt_id("space-a", other, tokens) == found) == (tenant == other)


@given(TENANTS, st.text(max_size=40))
def test_texts_that_are_no_id_are_nobodys(tenant: str, text: str) -> None:
    try:
        UUID(text)
    except ValueError:
        assert not is_own_id(tenant, text)
