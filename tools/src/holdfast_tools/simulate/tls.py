"""TLS on the server's side without an event loop's own TLS, so that faults have hold of every byte."""

from __future__ import annotations

import ssl
from pathlib import Path

_READ_SIZE = 256 * 1024


class TlsLayer:
    """One TLS session between bytes on the wire and bytes of the application."""

    __slots__ = ("_incoming", "_object", "_outgoing", "is_closed", "is_established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.is_established = False
        self.is_closed = False

    @property
    def protocol(self) -> str | None:
        """What ALPN chose (RFC 7301)."""
        return self._object.selected_alpn_protocol()

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the wire; return those for the application. `pending` may have grown afterwards."""
        self._incoming.write(data)
        received = []
        try:
            if not self.is_established:
                self._object.do_handshake()
                self.is_established = True
            while part := self._object.read(_READ_SIZE):
                received.append(part)
            self.is_closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # a fatal alert, ours or theirs
            self.is_closed = True
        return b"".join(received)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return `data` as bytes for the wire."""
        self._object.write(data)
        return self._outgoing.read()

    def pending(self) -> bytes:
        """Return what TLS itself wants to send."""
        return self._outgoing.read()

    def close(self) -> bytes:
        """Return the close_notify alert (RFC 8446 section 6.1)."""
        try:
            self._object.unwrap()
        except ssl.SSLError:  # the peer's close_notify is not waited for
            pass
        return self._outgoing.read()


def server_context(cert: str | Path, key: str | Path | None = None) -> ssl.SSLContext:
    """Return a context for a certificate (chain) and its key, both in PEM files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context
