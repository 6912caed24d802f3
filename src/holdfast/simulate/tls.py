"""TLS on the server's side without an event loop's own TLS, so that faults have hold of every byte; and a
self-signed certificate for trying it out.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
except ImportError:  # it is not a dependency of the gateway
    x509 = None  # type: ignore[assignment]

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


def self_signed(hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1")) -> tuple[bytes, bytes]:
    """Return a new self-signed certificate and its key as PEM; clients may trust the certificate as their CA.

    Raises RuntimeError if the package `cryptography` is not installed.
    """
    if x509 is None:
        raise RuntimeError("a self-signed certificate needs the package `cryptography`: pip install cryptography")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "holdfast simulate")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([_alternative_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def context_of(cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """Return a server context for a certificate and key in memory."""
    # The ssl module loads from files only.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "both.pem"
        path.touch(mode=0o600)
        path.write_bytes(key_pem + cert_pem)
        return server_context(path)


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
