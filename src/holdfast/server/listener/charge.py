"""What one connection holds of its user's memory for one reason: taken step by step, given back as a whole."""

from __future__ import annotations

from holdfast.core.limits.budget import Account, Kind


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
