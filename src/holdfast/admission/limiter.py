"""The limits of keys and tenants: who has used how much, and what a refusal says."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from holdfast.config.limits import LimitConfig, LimitsConfig, merged
from holdfast.core.limits.rate_limit import Concurrency, Lease, RateLimit, Reservation
from holdfast.dialects.ask import Bounds, RateLeft
from holdfast.errors import InvalidRequest, RateLimited

#: Bytes of a request's JSON that make about one token. English has four characters to a token, the envelope adds
#: some, other scripts have more bytes to a character and fewer characters to a token.
_BYTES_PER_TOKEN = 4
#: What an image, a recording or a file counts, whatever its encoded size.
_MEDIA_TOKENS = 1000
#: Accounts that are kept before those without any use are looked for.
_MAX_IDLE = 1024


_Name = TypeVar("_Name", bound=Hashable)


class Account(Generic[_Name]):
    """What one key or one tenant uses, against its limits."""

    __slots__ = ("connections", "kind", "limits", "name", "requests", "streams", "tickets", "tokens")

    def __init__(self, kind: str, name: _Name, limits: LimitConfig) -> None:
        self.kind = kind
        self.name = name
        self.streams = Concurrency()
        self.connections = Concurrency()
        #: Its requests that wait or run: of a tenant, those that wait hold nothing else yet.
        self.tickets = 0
        self.requests: RateLimit | None = None
        self.tokens: RateLimit | None = None
        self.configure(limits)

    def configure(self, limits: LimitConfig) -> None:
        """Set new limits. What is in use stays counted."""
        self.limits = limits
        self.streams.limit = limits.concurrent_streams
        self.connections.limit = limits.connections
        self.requests = _rate(self.requests, limits.requests_per_minute)
        self.tokens = _rate(self.tokens, limits.tokens_per_minute)

    def is_idle(self, now: float) -> bool:
        if self.tickets or self.streams.used or self.connections.used:
            return False
        return not any(rate and rate.used(now) for rate in (self.requests, self.tokens))

    def refuse(self, what: str, limit: object, key: str, retry_after: float) -> RateLimited:
        return RateLimited(
            f"the {self.kind} may {what.format(limit)} ({key} of its limits)", retry_after=retry_after
        )


def _rate(rate: RateLimit | None, limit: int | None) -> RateLimit | None:
    if limit is None:
        return None
    if rate is None:
        return RateLimit(limit)
    rate.limit = limit
    return rate


class Accounts(Generic[_Name]):
    """The accounts of all keys or of all tenants. Accounts without use are forgotten in time."""

    def __init__(self, kind: str, limits_of: Callable[[_Name], LimitConfig]) -> None:
        self._kind = kind
        self._limits_of = limits_of
        self._accounts: dict[_Name, Account[_Name]] = {}
        self._prune_at = _MAX_IDLE

    def __iter__(self) -> Iterator[Account[_Name]]:
        return iter(self._accounts.values())

    def get(self, name: _Name, now: float) -> Account[_Name]:
        """Return an account, which is made at its first use."""
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= self._prune_at:
                self._accounts = {name: known for name, known in self._accounts.items() if not known.is_idle(now)}
                self._prune_at = max(2 * len(self._accounts), _MAX_IDLE)
            account = self._accounts[name] = Account(self._kind, name, self._limits_of(name))
        return account

    def configure(self, limits_of: Callable[[_Name], LimitConfig]) -> None:
        """Use other limits from now on."""
        self._limits_of = limits_of
        for account in self._accounts.values():
            account.configure(limits_of(account.name))


class KeyName(NamedTuple):
    """A key within its tenant; None for callers of the tenant that are not told apart."""

    tenant: str
    key: str | None


#: Those of a request: its key's and its tenant's.
BothAccounts: TypeAlias = tuple[Account[KeyName], Account[str]]


class Limiter:
    """Checks one request against the limits of its key and of its tenant; takes from both or from none.

    Callers of a tenant without a key (this machine, where no keys are configured) count as one key. A subject of
    an issuer's tokens counts as a key, so keys are told apart by tenant as well: issuers may name subjects alike.
    """

    def __init__(
        self, config: LimitsConfig, own_limits: Callable[[str], LimitConfig | None] | None = None
    ) -> None:
        """`own_limits` gives the limits that a key brings along, which go before those of the configuration."""
        self._config = config
        self._own_limits = own_limits
        self.keys = Accounts("key", self._of_key)
        self.tenants = Accounts("tenant", config.of_tenant)

    def configure(self, config: LimitsConfig) -> None:
        """Use new limits from now on."""
        self._config = config
        self.keys.configure(self._of_key)
        self.tenants.configure(config.of_tenant)

    def _of_key(self, account: KeyName) -> LimitConfig:
        name = account.key or ""
        own = None if self._own_limits is None else self._own_limits(name)
        return merged(own, self._config.of_key(name))

    def accounts(self, tenant: str, key: str | None, now: float) -> BothAccounts:
        """Return the accounts of a key and of its tenant."""
        return self.keys.get(KeyName(tenant, key), now), self.tenants.get(tenant, now)

    def estimate(self, accounts: BothAccounts, bounds: Bounds) -> tuple[int, int]:
        """Estimate how many tokens a request has, and how many with its answer, over all its choices.

        A request that does not bound its answer is taken to stay within the limits that it is within itself.
        """
        prompt = self.tokens_of(bounds.size) + bounds.media * _MEDIA_TOKENS
        answer = bounds.max_output
        if answer is not None and bounds.unclear in (None, bounds.choices_field):
            return prompt, prompt + answer * bounds.choices
        # A bound beside a field that the provider may read as another one bounds nothing.
        answer = max(answer or 0, self._config.answer_tokens)
        limits = [account.tokens.limit for account in accounts if account.tokens is not None]
        return prompt, max(min([prompt + answer * bounds.choices, *limits]), prompt)

    @staticmethod
    def tokens_of(size: int) -> int:
        """Estimate how many tokens a request of so many bytes has."""
        return size // _BYTES_PER_TOKEN + 1

    def check(self, accounts: BothAccounts, tokens: int, output_field: str | None, now: float) -> None:
        """Raises `RateLimited` where a limit is used up, `InvalidRequest` where a request alone is beyond it.

        `output_field` is what the caller could make smaller, None where that is the request alone.
        """
        for account in accounts:
            limits = account.limits
            if account.tokens is not None and tokens > account.tokens.limit:
                smaller = "" if output_field is None else f", or a smaller `{output_field}`"
                raise InvalidRequest(
                    f"the request may take about {tokens} tokens, and the {account.kind} may use "
                    f"{account.tokens.limit} per minute; send less{smaller}",
                    param=output_field,
                )
            if account.requests is not None and (wait := account.requests.retry_after(now)) > 0:
                what = "ask for {} generations per minute"
                raise account.refuse(what, limits.requests_per_minute, "requests_per_minute", wait)
            if account.tokens is not None and (wait := account.tokens.retry_after(now, tokens)) > 0:
                raise account.refuse(
                    "use {} tokens per minute", limits.tokens_per_minute, "tokens_per_minute", wait
                )
        key = accounts[0]
        if key.streams.is_full:
            what = "have {} streams at a time"
            raise key.refuse(what, key.limits.concurrent_streams, "concurrent_streams", 1.0)

    def take(self, accounts: BothAccounts, tokens: int, now: float) -> list[Reservation]:
        """Count a request that was checked in this very turn, and set its tokens aside."""
        reservations = []
        for account in accounts:
            if account.requests is not None:
                account.requests.take(now)
            if account.tokens is not None and (reservation := account.tokens.reserve(now, tokens)) is not None:
                reservations.append(reservation)
        return reservations

    def connect(self, tenant: str, key: str | None, now: float) -> list[Lease]:
        """Count a connection that lasts; the leases are to be released with it. Raises `RateLimited`."""
        accounts = self.accounts(tenant, key, now)
        for account in accounts:
            if account.connections.is_full:
                raise account.refuse("have {} connections", account.limits.connections, "connections", 1.0)
        return [lease for account in accounts if (lease := account.connections.acquire()) is not None]

    def rates(self, tenant: str, key: str | None, now: float) -> list[RateLeft]:
        """Return what is left of each rate, of whichever of key and tenant has less; none without limits."""
        accounts = self.accounts(tenant, key, now)
        left = []
        for what, rates in (
            ("requests", [account.requests for account in accounts]),
            ("tokens", [account.tokens for account in accounts]),
        ):
            known = [rate for rate in rates if rate is not None]
            if known:
                rate = min(known, key=lambda rate: rate.remaining(now))
                left.append(RateLeft(what, rate.limit, rate.remaining(now), rate.reset_after(now)))
        return left


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or an IPv6 /64, which is what one host is usually given."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
