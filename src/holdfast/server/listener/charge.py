"""What one connection holds of its user's memory for one reason: taken step by step, given back as a whole."""

from __future__ import annotations

from holdfast.core.limits.budget import Account, Kind
from holdfast.errors import Overloaded

#: A connection may hold so much of heads, and of what is not parsed yet, without its being counted: ordinary
#: requests cost nothing, and a connection takes as much by itself.
UNCOUNTED = 4 * 1024


class Charge:
    """Bytes of an account. Whoever makes it calls `free` on every path; that is idempotent."""

    __slots__ = ("_account", "_kind", "size")

    def __init__(self, account: Account, kind: Kind) -> None:
        self._account = account
        self._kind = kind
        self.size = 0

    @property
    def account(self) -> Account:
        return self._account

    def set(self, size: int) -> bool:
        """Hold so many bytes. False, and nothing has changed, where that is more than fits."""
        before = self.size
        more = size - before
        if more > 0 and not self._account.take(self._kind, more):
            return False
        if more < 0:
            self._account.free(self._kind, -more)
        if self.size != before:
            # What had to go for it has ended the connection as well, and all that was held is freed.
            self._account.free(self._kind, more)
        else:
            self.size = size
        return True

    def grow(self, size: int) -> bool:
        """Hold so many bytes more. False, and nothing has changed, where they do not fit."""
        return self.set(self.size + size)

    def free(self) -> None:
        """Hold nothing any more."""
        self.set(0)


class HeadCharge:
    """What one connection holds of heads, from their first byte to their answer, and of what is not parsed yet."""

    __slots__ = ("_charge", "current", "heads")

    def __init__(self) -> None:
        self._charge: Charge | None = None
        #: Memory of whole heads, and the part of the one that is being answered.
        self.heads = 0
        self.current = 0

    def count(self, account: Account, rest: int) -> Overloaded | None:
        """Charge the heads, and `rest` bytes of what is not parsed yet. Where that does not fit, say so."""
        held = self.heads + rest
        charge = self._charge
        if charge is not None and (held <= UNCOUNTED or charge.account is not account):
            charge.free()
            charge = self._charge = None
        if held <= UNCOUNTED:
            return None
        if charge is None:
            charge = self._charge = Charge(account, Kind.BODIES)
        return None if charge.set(held) else account.refusal(held)

    def answered(self) -> None:
        """The current head is answered. It is charged until the next `count`."""
        self.heads -= self.current
        self.current = 0

    @property
    def is_charged(self) -> bool:
        return self._charge is not None

    def free(self) -> None:
        """Nothing is left of what has come."""
        self.heads = self.current = 0
        if self._charge is not None:
            self._charge.free()
            self._charge = None
