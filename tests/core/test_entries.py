"""Whose a stream is, and what an answer took. The other records are tested with the log and the session."""

from __future__ import annotations

import pytest

from holdfast.core.entries import MAX_COUNT, Owner, Usage

TENANT, ANN, BOB = Owner("t"), Owner("t", "ann"), Owner("t", "bob")
ADMIN = Owner("admin", is_admin=True)


@pytest.mark.parametrize(
    ("caller", "owner"), [(TENANT, TENANT), (TENANT, ANN), (ANN, ANN), (ADMIN, ANN), (ADMIN, ADMIN)]
)
def test_owner_may_read_its_own_and_a_tenant_what_its_subjects_own(caller: Owner, owner: Owner) -> None:
    assert caller.may_read(owner)


@pytest.mark.parametrize(
    ("caller", "owner"),
    [
        (ANN, TENANT),
        (ANN, BOB),
        (ANN, Owner("other", "ann")),
        (TENANT, Owner("other")),
        (TENANT, ADMIN),
        (Owner("admin"), ADMIN),
    ],
)
def test_owner_may_not_read_what_another_owns(caller: Owner, owner: Owner) -> None:
    assert not caller.may_read(owner)


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        (Usage(), 0),
        (Usage(prompt_tokens=3, completion_tokens=4), 7),
        (Usage(prompt_tokens=3, completion_tokens=4, total_tokens=9), 9),
        (Usage(prompt_tokens=-3), 0),
        (Usage(total_tokens=-1), 0),
        (Usage(prompt_tokens=MAX_COUNT, completion_tokens=MAX_COUNT), MAX_COUNT),
    ],
)
def test_total_is_billed_or_else_the_sum(usage: Usage, billed: int) -> None:
    assert usage.billed == billed


def test_admin_looks_on_at_what_others_own() -> None:
    assert ADMIN.looks_on(ANN)
    assert not ADMIN.looks_on(ADMIN)
    assert not TENANT.looks_on(ANN)
