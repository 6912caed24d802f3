"""Fetches small documents over HTTP, such as an issuer's keys: bounded in size, and in time to the last byte."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from holdfast.config import ProviderConfig, TimeoutsConfig
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamError
from holdfast.timers import Timers
from holdfast.upstream.call import Call
from holdfast.upstream.pool import Pool

#: Seconds that a connection is kept for another fetch. They are rare.
_IDLE: Final = 1.0
_HEADERS: Final = [(b"accept", b"application/json"), (b"user-agent", b"holdfast")]


class Fetcher:
    """Fetches one URL. Construct it inside a running event loop, and in the end `aclose` it.

    It follows no redirect, which could lead from https to http, or into the gateway's own network.
    """

    def __init__(self, url: str, timers: Timers, *, timeout: float, max_size: int) -> None:
        """`timeout` is for the whole of one fetch, in seconds. Raises `ConfigError` for an unusable proxy."""
        parts = urlsplit(url)
        self._request = HttpRequest(
            "GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), list(_HEADERS)
        )
        config = ProviderConfig(
            base_url=f"{parts.scheme}://{parts.netloc}",
            http2="off",
            max_connections=1,
            idle_timeout=_IDLE,
            timeouts=TimeoutsConfig(connect=timeout, pool=timeout, total=timeout),
        )
        self._pool = Pool(config, timers)
        self._timeout = timeout
        self._max_size = max_size

    async def fetch(self) -> bytes:
        """Fetch the document. Raises `OSError` (`TimeoutError` included), or `ValueError` for an answer of no use.

        Cancellation-safe: the connection is closed.
        """
        document = _Document(self._max_size)
        call: Call | None = None
        try:
            async with asyncio.timeout(self._timeout):
                call = await self._pool.send(self._request, document)
                return await document.whole
        except TimeoutError as exc:
            raise TimeoutError(f"it did not come within {self._timeout:g} s") from exc
        except UpstreamError as exc:
            raise OSError(exc.message) from exc
        finally:
            if call is not None:
                call.cancel()
            document.whole.cancel()

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Document:
    """The sink of a fetch. `whole` is the body, or why it is of no use."""

    def __init__(self, max_size: int) -> None:
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._max_size = max_size
        self._parts: list[bytes] = []
        self._size = 0

    def response_received(self, status: int, headers: Headers) -> None:
        if not 200 <= status < 300:
            self._fail(ValueError(f"the answer has the status {status}"))

    def data_received(self, chunks: list[bytes]) -> None:
        self._size += sum(map(len, chunks))
        if self._size > self._max_size:
            self._fail(ValueError(f"it is larger than {self._max_size} bytes"))
        elif not self.whole.done():
            self._parts += chunks

    def response_ended(self) -> None:
        if not self.whole.done():
            self.whole.set_result(b"".join(self._parts))

    def response_failed(self, error: UpstreamError) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._parts.clear()
        if not self.whole.done():
            self.whole.set_exception(error)
