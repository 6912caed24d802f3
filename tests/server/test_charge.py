"""`Charge`: what one connection holds, also where making room for it ends the connection."""

from __future__ import annotations

from holdfast.core.limits.budget import Budget, Kind
from holdfast.server.listener.charge import Charge


def test_charge_is_taken_step_by_step_and_given_back_as_a_whole() -> None:
    budget = Budget(1600)
    charge = Charge(budget.account("a"), Kind.BODIES)
    assert charge.set(500)
    assert charge.grow(500)
    assert not charge.grow(500)
    assert (charge.size, budget.used) == (1000, 1000)
    assert charge.set(100)
    assert budget.used == 100
    charge.free()
    charge.free()
    assert (charge.size, budget.used) == (0, 0)


def test_charge_that_is_freed_while_it_grows_holds_nothing() -> None:
    budget = Budget(1600)
    account = budget.account("a")
    charge = Charge(account, Kind.BODIES)

    def let_go(_: object) -> None:
        account.free(Kind.LOGS, 1000)
        charge.free()

    budget.let_go = let_go
    charge.set(100)
    account.add(Kind.LOGS, 1000)
    account.may_go("a log", 1000)
    assert charge.grow(500)
    assert (charge.size, budget.used) == (0, 0)
