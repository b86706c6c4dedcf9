"""Under which names the nights and priors of tenants lie.

Owns how a latent space and a tenant become one name, which stands wherever nights, leases, labels, schedules
and folders of priors are told apart by space. Of the default tenant it is the space's id itself. Knows
nothing of what lies there.
"""

from sqlalchemy import ColumnElement

from memory.episode import TENANT

BETWEEN = "+"
"""In no id of a space, and in no name of a tenant."""


def partition(space: str, tenant: str) -> str:
    """Return the name of a tenant's part of a space."""
    return space if tenant == TENANT else f"{space}{BETWEEN}{tenant}"


def parted(name: str) -> tuple[str, str]:
    """Return the space and the tenant that a part of that name is of."""
    space, _, tenant = name.partition(BETWEEN)
    return space, tenant or TENANT


def of_tenant(name: ColumnElement[str], tenant: str) -> ColumnElement[bool]:
    """Return the condition that a column names a part of a tenant."""
    if tenant == TENANT:
        return ~name.contains(BETWEEN, autoescape=True)
    return name.endswith(BETWEEN + tenant, autoescape=True)
