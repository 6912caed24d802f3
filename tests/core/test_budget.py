"""`Budget`: who may hold how much memory, who goes first when it is short, and who is told of it."""

from __future__ import annotations

import gc
from collections.abc import Hashable

import pytest

from holdfast.core.limits.budget import LONG_STEP, MIN_SHARE, SHARE, Account, Budget, Kind

#: A limit of which the room is 1,500: one alone may have 1,200 of it.
LIMIT = 1600


class House:
    """A budget whose items are let go of by their names, and who they belong to."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.gone: list[Hashable] = []
        self._items: dict[Hashable, tuple[Account, int]] = {}
        self.budget = Budget(limit, let_go=self._let_go)
        self.a = self.budget.account("a")
        self.b = self.budget.account("b")

    def end_log(self, account: Account, name: Hashable, size: int) -> None:
        account.add(Kind.LOGS, size)
        self._items[name] = (account, size)
        account.may_go(name, size)

    def _let_go(self, name: Hashable) -> None:
        account, size = self._items.pop(name)
        self.gone.append(name)
        account.free(Kind.LOGS, size)


class Paused:
    def __init__(self) -> None:
        self.resumed = 0

    def resume_source(self) -> None:
        self.resumed += 1


def test_one_tenant_alone_has_most_of_the_budget() -> None:
    house = House()
    assert not house.a.take(Kind.BODIES, 1201)
    assert house.a.take(Kind.BODIES, 1200)
    assert not house.a.take(Kind.BODIES, 1)
    assert (house.a.used, house.budget.used) == (1200, 1200)


def test_two_tenants_have_equal_parts_and_a_newcomer_finds_room() -> None:
    house = House()
    for _ in range(LIMIT):
        house.a.take(Kind.BODIES, 1)
        house.b.take(Kind.REQUESTS, 1)
    assert abs(house.a.used - house.b.used) <= 1
    assert house.a.used == pytest.approx(1500 * SHARE / (1 + 2 * SHARE), abs=2)
    newcomer = house.budget.account("c")
    assert newcomer.take(Kind.BODIES, 100)


def test_a_take_is_whole_or_nothing_and_counted_by_kind() -> None:
    house = House()
    assert house.a.take(Kind.BODIES, 500)
    assert not house.a.take(Kind.OUTPUT, 800)
    assert house.budget.by_kind == [500, 0, 0, 0, 0]
    house.a.free(Kind.BODIES, 500)
    assert (house.a.used, house.budget.used, house.budget.by_kind) == (0, 0, [0] * 5)


def test_strangers_have_a_small_share_whatever_is_free() -> None:
    house = House()
    strangers = house.budget.strangers
    assert strangers.take(Kind.BODIES, 100)
    assert not strangers.take(Kind.BODIES, 1)
    strangers.free(Kind.BODIES, 100)
    house.a.add(Kind.LOGS, 1450)
    assert not strangers.take(Kind.BODIES, 51)
    assert strangers.take(Kind.BODIES, 50)


def test_strangers_get_room_from_what_can_be_reclaimed() -> None:
    house = House()
    house.end_log(house.a, "log", 1190)
    house.b.add(Kind.LOGS, 300)
    assert house.budget.strangers.take(Kind.BODIES, 50)
    assert house.gone == ["log"]


def test_ended_logs_of_a_larger_user_go_before_a_smaller_one_is_refused() -> None:
    house = House()
    for name in range(11):
        house.end_log(house.a, name, 100)
    house.b.add(Kind.REQUESTS, 10)
    assert house.b.take(Kind.BODIES, 400)
    assert house.gone == [0, 1]
    assert house.b.take(Kind.BODIES, 200)
    assert house.gone == [0, 1, 2, 3]


def test_ended_logs_of_smaller_users_stay() -> None:
    house = House()
    house.end_log(house.a, "log", 400)
    assert house.b.take(Kind.BODIES, 880)
    assert not house.b.take(Kind.BODIES, 20)
    assert house.gone == []


def test_own_ended_logs_go_where_the_account_is_the_largest() -> None:
    house = House()
    house.end_log(house.a, "first", 600)
    house.end_log(house.a, "second", 600)
    assert house.a.take(Kind.BODIES, 300)
    assert house.gone == ["first"]


def test_nothing_goes_where_all_of_it_would_not_be_enough() -> None:
    house = House()
    house.end_log(house.a, "log", 1000)
    assert not house.b.take(Kind.BODIES, 1201)
    assert not house.budget.strangers.take(Kind.BODIES, 101)
    assert house.gone == []
    assert house.b.take(Kind.BODIES, 1200)
    assert house.gone == ["log"]


def test_the_largest_user_goes_first_as_sizes_change() -> None:
    house = House(16_000)
    house.end_log(house.a, "a", 100)
    house.end_log(house.b, "b", 200)
    house.a.add(Kind.OUTPUT, 1000)  # now the larger one
    assert house.budget.reclaim()
    house.end_log(house.a, "a2", 100)
    house.a.free(Kind.OUTPUT, 1000)
    assert house.budget.reclaim()
    assert house.budget.reclaim()
    assert not house.budget.reclaim()
    assert house.gone == ["a", "b", "a2"]


def test_users_of_one_size_share_a_class() -> None:
    house = House()
    house.end_log(house.a, "a", 100)
    house.end_log(house.b, "b", 100)
    assert house.budget.reclaim()
    assert house.budget.reclaim()
    assert (house.gone, house.budget.reclaimable) == (["a", "b"], 0)


def test_what_is_needed_again_or_gone_is_not_reclaimed() -> None:
    house = House()
    house.end_log(house.a, "a", 100)
    house.a.stays("a")
    house.a.stays("a")
    assert not house.budget.reclaim()
    assert (house.budget.reclaimable, house.a.reclaimable, house.a.used) == (0, 0, 100)


def test_a_budget_without_anybody_to_let_go_refuses() -> None:
    budget = Budget(LIMIT)
    account = budget.account("a")
    account.add(Kind.LOGS, 1200)
    account.may_go("log", 1200)
    assert not account.take(Kind.BODIES, 1)


def test_growth_beyond_the_share_leaves_the_account_short_until_it_is_well_below() -> None:
    house = House()
    paused = Paused()
    house.a.waiting.add(paused)
    house.a.add(Kind.LOGS, 1200)
    assert not house.a.is_short
    house.a.add(Kind.LOGS, 1)
    house.a.add(Kind.LOGS, 9)
    assert house.a.is_short
    house.a.free(Kind.LOGS, 20)
    assert (house.a.is_short, paused.resumed) == (True, 0)
    house.a.free(Kind.LOGS, 40)
    assert (house.a.is_short, paused.resumed) == (False, 1)


def test_growth_lets_go_of_what_ended() -> None:
    house = House()
    house.end_log(house.a, "log", 600)
    house.a.add(Kind.LOGS, 700)
    assert (house.gone, house.a.is_short) == (["log"], False)


def test_only_who_is_over_the_share_is_short() -> None:
    house = House()
    house.a.add(Kind.LOGS, 1210)
    house.b.add(Kind.LOGS, 100)
    assert (house.a.is_short, house.b.is_short) == (True, False)


def test_memory_that_others_free_resumes_who_waits() -> None:
    house = House()
    house.b.take(Kind.BODIES, 600)
    house.a.add(Kind.LOGS, 800)
    paused = Paused()
    house.a.waiting.add(paused)
    assert house.a.is_short
    house.b.free(Kind.BODIES, 600)
    assert (house.a.is_short, paused.resumed) == (False, 1)


def test_many_who_are_short_are_looked_at_when_a_part_of_the_limit_is_free() -> None:
    house = House(LIMIT * 1000)
    accounts = [house.budget.account(str(number)) for number in range(19)]
    small = house.budget.account("small")
    for account in accounts:
        account.add(Kind.LOGS, 78_900)
    small.add(Kind.LOGS, 4500)
    for account in accounts:
        account.add(Kind.LOGS, 1)
    assert small.is_short
    house.budget.strangers.add(Kind.BODIES, 1000)
    house.budget.strangers.free(Kind.BODIES, 1000)  # so little that nobody looked
    assert small.is_short
    accounts[0].free(Kind.LOGS, 78_900)
    assert not small.is_short
    for account in accounts:
        account.free(Kind.LOGS, account.used)
    assert not any(account.is_short for account in accounts)


def test_who_gives_back_what_it_holds_is_short_no_longer_whoever_takes_it() -> None:
    house = House(LIMIT * 1000)
    accounts = [house.budget.account(str(number)) for number in range(20)]
    while not all(account.is_short for account in accounts):
        for account in accounts:
            if not account.is_short:
                account.add(Kind.LOGS, 100)
    paused = Paused()
    accounts[0].waiting.add(paused)
    for number in range(20):
        assert accounts[0].is_short
        account = house.budget.account(f"newcomer {number}")
        step = min(accounts[0].used, 2000)
        accounts[0].free(Kind.LOGS, step)
        if not accounts[0].is_short:
            break
        assert account.take(Kind.REQUESTS, step)
        accounts.append(account)
    assert paused.resumed == 1
    assert all(account.is_short for account in accounts[1:20])


def test_each_who_waits_is_resumed_once_though_resuming_frees_more() -> None:
    house = House()
    c = house.budget.account("c")

    class Freeing:
        def resume_source(self) -> None:
            house.a.free(Kind.LOGS, 100)

    paused = Paused()
    house.a.waiting.add(Freeing())
    c.waiting.add(paused)
    house.b.take(Kind.BODIES, 600)
    c.add(Kind.LOGS, 400)
    house.a.add(Kind.LOGS, 460)
    c.add(Kind.LOGS, 1)
    assert house.a.is_short
    assert c.is_short
    house.b.free(Kind.BODIES, 600)
    assert (house.a.is_short, c.is_short) == (False, False)
    assert (house.a.used, paused.resumed) == (360, 1)


def test_smaller_limit_lets_ended_logs_go_at_once() -> None:
    house = House()
    for name in range(10):
        house.end_log(house.a, name, 100)
    house.b.add(Kind.LOGS, 300)
    house.budget.configure(LIMIT // 2)
    assert house.gone == [0, 1, 2, 3, 4, 5]
    assert house.budget.used == 700
    house.budget.configure(LIMIT // 16)
    assert (house.a.used, house.b.used) == (0, 300)  # what runs stays


def test_another_limit_counts_from_now_on() -> None:
    house = House()
    house.a.add(Kind.LOGS, 1300)
    assert house.a.is_short
    house.budget.configure(2 * LIMIT)
    assert not house.a.is_short
    assert house.budget.strangers.bound == 2 * LIMIT // 16


def test_an_account_is_one_for_all_who_refer_to_it_and_forgotten_then() -> None:
    house = House()
    assert house.budget.account("a") is house.a
    assert {account.tenant for account in house.budget.accounts()} == {"a", "b"}
    del house.b
    gc.collect()
    assert [account.tenant for account in house.budget.accounts()] == ["a"]


def test_a_refusal_says_whose_share_is_used_up() -> None:
    house = House()
    house.a.take(Kind.BODIES, 1200)
    assert "the tenant's share" in house.a.refusal(1).message
    assert "the tenant's share" in house.a.refusal().message
    house.b.add(Kind.LOGS, 300)
    assert "the gateway's memory is used up" in house.budget.account("c").refusal(10).message
    assert "without a credential" in house.budget.strangers.refusal(1).message
    assert house.a.refusal().retry_after == 1.0


def test_a_running_log_keeps_a_least_share() -> None:
    budget = Budget(1 << 30)
    assert budget.least_log == MIN_SHARE
    budget.running = 4096
    assert budget.least_log == 16 * 1024
    budget.running = 1_000_000
    assert budget.least_log == 4 * 1024


def test_running_logs_and_those_who_wait_are_known_over_all_accounts() -> None:
    house = House(1 << 20)
    for account in (house.a, house.a, house.b):
        account.log_begins()
    assert (house.a.running, house.b.running, house.budget.running) == (2, 1, 3)
    assert house.a.least_log == house.budget.least_log == (1 << 16) // 3
    first, second = Paused(), Paused()
    house.a.waiting.add(first)
    house.b.waiting.add(second)
    assert house.budget.waiting == {first, second}
    house.a.log_ends()
    assert (house.a.running, house.budget.running) == (1, 2)


# -- time of the event loop --


def test_long_steps_are_paid_back_at_a_hundredth_of_the_time() -> None:
    account = Budget(1 << 20).account("t")
    account.owe(LONG_STEP, 5.0)
    assert account.owes_until == 0.0
    account.owe(0.04, 5.0)
    assert account.owes_until == pytest.approx(7.0)
    account.owe(0.1, 6.0)
    assert account.owes_until == pytest.approx(15.0)


def test_what_is_owed_outlasts_the_last_connection_and_is_forgotten_when_paid() -> None:
    budget = Budget(1 << 20)
    budget.account("gone").owe(0.1, 0.0)
    assert budget.account("gone").owes_until == pytest.approx(8.0)
    budget.account("other").owe(0.1, 11.0)
    assert [account.tenant for account in budget.accounts()] == ["other"]
