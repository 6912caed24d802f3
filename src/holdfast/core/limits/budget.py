"""One budget of memory for all that peers can make the process hold, with a share of it for each tenant.

It counts and decides; who takes from it pauses, refuses or lets go. Shares follow the dynamic threshold of shared
memory switches (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998): a
user may hold at most `SHARE` times what is free at that moment. So one that is alone may have most of the budget,
many have equal parts of it, a newcomer always finds room, and no table of weights is kept.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol
from weakref import WeakValueDictionary

from holdfast.errors import Overloaded

#: A tenant may hold so many times what is free: one alone four fifths, each of two four ninths.
SHARE = 4
#: The part of the budget that all callers without a credential have together, one in so many.
_STRANGERS = 16
#: The part that is kept for running logs, so that they move however short memory is, one in so many.
_HEADROOM = 16
#: What a running log may always hold: this much, or its part of the headroom where that is less, or the least.
MIN_SHARE = 64 * 1024
_LEAST_SHARE = 4 * 1024
#: Memory counts as short until an account has fallen below this many tenths of its bound.
_ENOUGH = 9
#: Seconds that one step for a user may take without being counted, and the part of time, one in so many, in which
#: what longer ones take beyond that is paid back.
LONG_STEP = 0.02
_PAYS_BACK = 100
#: Up to so many accounts that are short, each of them is looked at whenever something becomes free; more of them
#: only when a part of the limit has, one in so many.
_FEW = 16
_STEPS = 256


class Kind(enum.IntEnum):
    """What memory is held for."""

    BODIES = 0  # HTTP bodies in flight, and heads that take more than one read
    MESSAGES = 1  # WebSocket messages of which the rest is missing
    REQUESTS = 2  # requests that wait or run
    LOGS = 3  # running and ended ones
    OUTPUT = 4  # what sockets have not taken yet


class Waiting(Protocol):
    def resume_source(self) -> None:
        """Memory is free again: go on."""


class Account:
    """What one user of the budget holds. It is made by its budget.

    `take` refuses what does not fit; `add` counts what is here already, and leaves the account *short* where that
    is more than its bound. Whoever adds looks at `is_short`, pauses, and is resumed from `waiting`.

    Invariants: an account is in the budget's table for as long as anybody refers to it; what can be reclaimed of
    it is part of `used`; it is short only while it is at its bound, or has not fallen well below it.
    """

    __slots__ = (
        "__weakref__",
        "_budget",
        "_items",
        "_level",
        "is_short",
        "owes_until",
        "reclaimable",
        "running",
        "tenant",
        "used",
        "waiting",
    )

    def __init__(self, budget: Budget, tenant: str | None) -> None:
        """`tenant` is None for everybody without a credential."""
        self._budget = budget
        self.tenant = tenant
        self.used = 0
        #: Whether logs of this account have to wait: it holds as much as it may, and nothing can be reclaimed.
        self.is_short = False
        #: When it has paid back the time of the loop that it took in long steps; see `owe`.
        self.owes_until = 0.0
        #: Its running logs.
        self.running = 0
        #: Those who let their provider wait until there is room.
        self.waiting: set[Waiting] = set()
        #: Bytes of it that can be reclaimed.
        self.reclaimable = 0
        # What may be let go of, oldest first, with its size. A plain dict would be slow to give its first item
        # after many were removed there.
        self._items: OrderedDict[Hashable, int] = OrderedDict()
        self._level = 0

    @property
    def bound(self) -> int:
        """How much it may hold at this moment."""
        budget = self._budget
        return budget.limit // _STRANGERS if self.tenant is None else max(SHARE * budget.free, 0)

    @property
    def least_log(self) -> int:
        """How much each of its running logs may hold while it is short."""
        return self._budget.least_log

    def take(self, kind: Kind, size: int) -> bool:
        """Take so many bytes whole or not at all.

        What can be reclaimed of users as large as this one, itself among them, goes first.
        """
        if not self.make_room(size):
            return False
        self._count(kind, size)
        return True

    def add(self, kind: Kind, size: int) -> None:
        """Count what is here already, whether it fits or not."""
        budget = self._budget
        budget.used += size
        budget.by_kind[kind] += size
        self.used += size
        if self._items:
            budget._move(self)
        # Written out, since every running log comes here again and again: what `_fits` says of a tenant.
        if self.used > SHARE * (budget.limit - budget.limit // _HEADROOM - budget.used):
            self._overdrawn()

    def _overdrawn(self) -> None:
        while not self._fits(0):
            if not self._budget.reclaim(self):
                self.is_short = True
                self._budget._keep_short(self)
                return

    def free(self, kind: Kind, size: int) -> None:
        """Give back what was taken or added."""
        self._count(kind, -size)
        budget = self._budget
        if self.is_short:
            # Whatever others take of what it gives back.
            budget._relieve(self)
        if budget._short:
            budget._look()

    def make_room(self, size: int) -> bool:
        """Let go of what can be reclaimed until so much more fits.

        Nothing goes where all of it would not be enough.
        """
        budget = self._budget
        free = budget.free - size + budget.reclaimable
        if self.tenant is None:
            would_fit = free >= 0 and self.used + size <= self.bound
        else:
            would_fit = self.used - self.reclaimable + size <= SHARE * free
        while not self._fits(size):
            if not would_fit or not budget.reclaim(self):
                return False
        return True

    def refusal(self, size: int = 0) -> Overloaded:
        """Say whose share is used up where so much could not be taken."""
        if self.tenant is None:
            whose = "callers without a credential hold all the memory that they may have"
        elif self.used and size <= SHARE * (self._budget.free - size):
            whose = "the tenant's share of the gateway's memory is used up by what it sends and runs"
        else:
            whose = "the gateway's memory is used up"
        return Overloaded(whose, retry_after=1.0)

    # -- time of the event loop --

    def owe(self, seconds: float, now: float) -> None:
        """One step for this user has taken so long, in which nobody else was served.

        What a step takes beyond `LONG_STEP` is paid back: while `owes_until` is to come, nothing is read on that
        may lead to another one. So such steps take a small part of all time, however many ask for them.
        """
        if seconds > LONG_STEP:
            self.owes_until = max(self.owes_until, now) + (seconds - LONG_STEP) * _PAYS_BACK
            self._budget._keep_owing(self, now)

    # -- logs --

    def log_begins(self) -> None:
        """Count one more running log, which may hold its least share."""
        self.running += 1
        self._budget.running += 1

    def log_ends(self) -> None:
        """It runs no more, whether it can be read on or not."""
        self.running -= 1
        self._budget.running -= 1

    # -- what may go when memory is short --

    def may_go(self, item: Hashable, size: int) -> None:
        """Let an item of this size, which was added before, be reclaimed; the oldest goes first."""
        self._items[item] = size
        self.reclaimable += size
        self._budget.reclaimable += size
        if len(self._items) == 1:
            self._budget._place(self)

    def stays(self, item: Hashable) -> None:
        """Take back `may_go`: it is gone, or is needed again. Idempotent."""
        size = self._items.pop(item, None)
        if size is not None:
            self.reclaimable -= size
            self._budget.reclaimable -= size
            if not self._items:
                self._budget._remove(self)

    def _fits(self, size: int) -> bool:
        budget = self._budget
        free = budget.free - size
        if self.tenant is None:
            return free >= 0 and self.used + size <= self.bound
        return self.used + size <= SHARE * free

    def _count(self, kind: Kind, size: int) -> None:
        budget = self._budget
        budget.used += size
        budget.by_kind[kind] += size
        self.used += size
        if self._items:
            budget._move(self)


class Budget:
    """The memory of one process. `let_go` is called with each item that is reclaimed, and frees what it held.

    Users that have something to reclaim stand in classes by how much they hold, each class a fifth larger than the
    one below, so that the largest is found at once; of two within one class, either may be taken for the larger.
    """

    def __init__(self, limit: int, *, let_go: Callable[[Hashable], None] | None = None) -> None:
        self.limit = limit
        self.used = 0
        self.by_kind = [0] * len(Kind)
        #: Bytes that can be reclaimed.
        self.reclaimable = 0
        #: Running logs of all accounts, among which the headroom is shared.
        self.running = 0
        self.let_go = let_go
        # An account is kept by those who hold something of it, or may soon: the table needs no bound of its own.
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        #: Everybody without a credential, together.
        self.strangers = Account(self, None)
        self._short: dict[Account, None] = {}
        # Those who owe time: else it would be forgotten with their last connection.
        self._owing: list[Account] = []
        self._look_below = 0
        self._levels: dict[int, OrderedDict[Account, None]] = {}
        # One bit for each class that has somebody.
        self._occupied = 0

    def configure(self, limit: int) -> None:
        """Set another limit. What is held stays counted; what can be reclaimed goes where it is too much."""
        self.limit = limit
        while self.free < 0 and self.reclaim():
            pass
        self._look_below = self.used
        self._look()

    @property
    def free(self) -> int:
        """What is left to be taken; below zero where running logs have grown into what is kept for them."""
        return self.limit - self.limit // _HEADROOM - self.used

    @property
    def least_log(self) -> int:
        """How much a running log may hold however short memory is, so that it moves."""
        return max(min(self.limit // _HEADROOM // max(self.running, 1), MIN_SHARE), _LEAST_SHARE)

    @property
    def waiting(self) -> set[Waiting]:
        """All who let their provider wait until there is room. It looks at every account."""
        return {waiting for account in self.accounts() for waiting in account.waiting}

    def account(self, tenant: str) -> Account:
        """Return a tenant's account, which is made at its first use and forgotten when nobody refers to it."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(self, tenant)
        return account

    def accounts(self) -> list[Account]:
        """The accounts of tenants that hold something, or are connected."""
        return list(self._accounts.values())

    def reclaim(self, account: Account | None = None) -> bool:
        """Let go of the oldest item of the largest user, who is as large as this account at least.

        Without an account, whoever is the largest. False where there is none.
        """
        level = self._occupied.bit_length() - 1
        if level < 0 or (account is not None and level < _level_of(account.used)) or self.let_go is None:
            return False
        victim = next(iter(self._levels[level]))
        item = next(iter(victim._items))
        victim.stays(item)
        self.let_go(item)
        return True

    def _keep_owing(self, account: Account, now: float) -> None:
        owing = [other for other in self._owing if other.owes_until > now and other is not account]
        self._owing = [*owing, account]

    def _keep_short(self, account: Account) -> None:
        self._short[account] = None
        self._look_below = max(self._look_below, self.used - self.limit // _STEPS)

    def _look(self) -> None:
        """Resume those for whom memory is no longer short."""
        if len(self._short) > _FEW and self.used > self._look_below:
            return
        self._look_below = self.used - self.limit // _STEPS
        bound = SHARE * self.free * _ENOUGH
        for account in [account for account in self._short if account.used * 10 <= bound]:
            self._relieve(account)

    def _relieve(self, account: Account) -> None:
        """Resume who waits for an account, unless its memory is short still."""
        if account.used * 10 <= SHARE * self.free * _ENOUGH and account in self._short:
            del self._short[account]
            account.is_short = False
            for waiting in list(account.waiting):
                waiting.resume_source()

    def _move(self, account: Account) -> None:
        """Put an account into the class that it has grown or shrunk into."""
        if _level_of(account.used) != account._level:
            self._remove(account)
            self._place(account)

    def _place(self, account: Account) -> None:
        level = account._level = _level_of(account.used)
        self._levels.setdefault(level, OrderedDict())[account] = None
        self._occupied |= 1 << level

    def _remove(self, account: Account) -> None:
        accounts = self._levels[account._level]
        del accounts[account]
        if not accounts:
            del self._levels[account._level]
            self._occupied ^= 1 << account._level


def _level_of(size: int) -> int:
    """The class of a size: its highest bit, and the two bits below that."""
    bits = size.bit_length()
    return bits if bits < 3 else (bits << 2) | ((size >> (bits - 3)) & 3)
