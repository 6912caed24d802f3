"""A stateful model of the memory budget: peers that take what they can, logs that grow, end and go.

Whatever they do, the sum stays within the limit and one read of each running log, nobody takes more than their
share, a newcomer is served, and everything comes back.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.core.limits.budget import SHARE, Account, Budget, Kind

LIMIT = 16 * 1024 * 1024
#: The most that comes from a provider at a time, and what a newcomer asks for.
READ = 16 * 1024
SMALL = 100 * 1024
TENANTS = ("a", "b", "c")
LOGS = 3

tenants = st.sampled_from(TENANTS)
sizes = st.one_of(st.integers(1, 64 * 1024), st.integers(1, LIMIT))


class RunningLog:
    """It grows until it has to wait, and is told when it may go on."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.size = 0
        self.resumed = 0
        account.log_begins()

    @property
    def is_full(self) -> bool:
        return self.account.is_short and self.size >= self.account.least_log

    def resume_source(self) -> None:
        if not self.is_full:
            self.account.waiting.discard(self)
            self.resumed += 1


class BudgetModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(LIMIT, let_go=self.let_go)
        self.accounts = {name: self.budget.account(name) for name in TENANTS}
        self.taken: list[tuple[Account, Kind, int]] = []
        self.running: dict[str, list[RunningLog]] = {name: [] for name in TENANTS}
        self.ended: dict[Hashable, tuple[Account, int]] = {}
        self.numbers = itertools.count()

    def let_go(self, item: Hashable) -> None:
        account, size = self.ended.pop(item)
        largest = max((other.used for other, _ in [*self.ended.values(), (account, size)]), default=0)
        assert account.used * 5 >= largest * 4, "a smaller user's log went first"
        account.free(Kind.LOGS, size)

    @rule(name=st.sampled_from([*TENANTS, None]), kind=st.sampled_from(list(Kind)), size=sizes)
    def take(self, name: str | None, kind: Kind, size: int) -> None:
        account = self.budget.strangers if name is None else self.accounts[name]
        if account.take(kind, size):
            self.taken.append((account, kind, size))
            assert account.used <= (LIMIT // 16 if name is None else SHARE * self.budget.free)
            assert self.budget.free >= 0

    @rule(which=st.integers(0, 1000))
    def give_back(self, which: int) -> None:
        if self.taken:
            account, kind, size = self.taken.pop(which % len(self.taken))
            account.free(kind, size)

    @rule(name=tenants)
    def begin(self, name: str) -> None:
        if len(self.running[name]) < LOGS and not self.accounts[name].is_short:
            self.running[name].append(RunningLog(self.accounts[name]))

    @rule(name=tenants, which=st.integers(0, LOGS - 1), reads=st.lists(st.integers(1, READ), min_size=1))
    def grow(self, name: str, which: int, reads: list[int]) -> None:
        for log in self.running[name][which : which + 1]:
            for size in reads * 20:
                if log.is_full:
                    log.account.waiting.add(log)
                    break
                log.account.add(Kind.LOGS, size)
                log.size += size

    @rule(name=tenants, which=st.integers(0, LOGS - 1))
    def end(self, name: str, which: int) -> None:
        for log in self.running[name][which : which + 1]:
            self.running[name].remove(log)
            log.account.waiting.discard(log)
            log.account.log_ends()
            item = next(self.numbers)
            self.ended[item] = (log.account, log.size)
            log.account.may_go(item, log.size)

    @rule(which=st.integers(0, 1000))
    def expire(self, which: int) -> None:
        if self.ended:
            item = list(self.ended)[which % len(self.ended)]
            account, size = self.ended.pop(item)
            account.stays(item)
            account.free(Kind.LOGS, size)

    @rule()
    def newcomer_is_served_whatever_the_others_hold(self) -> None:
        newcomer = self.budget.account("newcomer")
        assert newcomer.take(Kind.REQUESTS, SMALL), "those who hold little were refused because of others"
        newcomer.free(Kind.REQUESTS, SMALL)

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        for account in (*self.accounts.values(), self.budget.strangers):
            held = sum(size for other, _, size in self.taken if other is account)
            held += sum(log.size for log in self.running.get(account.tenant or "", ()))
            held += sum(size for other, size in self.ended.values() if other is account)
            assert account.used == held
        assert self.budget.used == sum(self.budget.by_kind)
        assert self.budget.reclaimable == sum(size for _, size in self.ended.values())

    @invariant()
    def the_sum_is_within_the_limit(self) -> None:
        running = sum(map(len, self.running.values()))
        assert self.budget.used <= LIMIT + running * READ

    @invariant()
    def who_waits_is_over_the_share(self) -> None:
        for account in self.accounts.values():
            for log in account.waiting:
                assert isinstance(log, RunningLog)
                assert log.is_full
                assert account.used * 10 > 9 * SHARE * self.budget.free

    def teardown(self) -> None:
        for account, kind, size in self.taken:
            account.free(kind, size)
        for logs in self.running.values():
            for log in logs:
                log.account.free(Kind.LOGS, log.size)
                log.account.log_ends()
                assert log not in log.account.waiting or not log.account.is_short
        while self.budget.reclaim():
            pass
        assert (self.budget.used, self.budget.reclaimable, self.budget.running) == (0, 0, 0)
        assert self.budget.by_kind == [0] * len(Kind)
        assert not self.budget.waiting
        assert not any(account.is_short for account in self.accounts.values())


BudgetModel.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBudgetModel = BudgetModel.TestCase
