"""A certificate that is renewed in its file: when it is served, and what a bad one does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from holdfast.app import Gateway
from holdfast.config import parse
from holdfast.reload import ConfigFile
from holdfast_tools.simulate.certificate import self_signed
from tests.support.gateway_client import Session, chat

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


class Served:
    """The demo over TLS, and the files of its certificate."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.config = folder / "holdfast.toml"
        self.config.write_text(f'[server]\nport = 0\ntls_cert = "{self.cert}"\ntls_key = "{self.key}"\n')
        self.renew()
        self.file = ConfigFile(self.config, parse)
        self.gateway = Gateway(self.file.load())
        self.now = 0.0

    def renew(self, *, cert: bytes | None = None, key: bytes | None = None) -> bytes:
        """Write another certificate, or a part of one. Returns the certificate in its file."""
        new_cert, new_key = self_signed()
        self.cert.write_bytes(new_cert if cert is None else cert)
        self.key.write_bytes(new_key if key is None else key)
        return self.cert.read_bytes()

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.now += 1.0
            self.file.look(self.gateway, self.now)

    async def certificate(self) -> str:
        """Shake hands; return the certificate that was shown. The client names no server."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port, ssl=context, server_hostname="")
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return ssl.DER_cert_to_PEM_cert(shown)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    await served.gateway.start()
    served.file.attach(served.gateway)
    yield served
    served.file.close()
    await served.gateway.aclose()


async def test_renewed_certificate_is_served_without_a_signal_and_streams_go_on(served: Served) -> None:
    first = served.cert.read_text()
    trust = ssl.create_default_context(cafile=str(served.cert))
    assert await served.certificate() == first
    async with await Session.open(served.gateway.url, ssl=trust) as session:
        await session.create("r-1", chat({"tokens": 50, "interval_ms": 2}))
        entries = await session.entries(1)
        second = served.renew().decode()
        served.look(1)
        assert await served.certificate() == first, "not before a second look has seen the same"
        served.look(1)
        assert await served.certificate() == second != first
        assert (await session.read(start=len(entries)))[1]["status"] == "completed"
    trusted = ssl.create_default_context(cafile=str(served.cert))
    async with await Session.open(served.gateway.url, ssl=trusted):
        pass


async def test_renewed_certificate_is_taken_though_the_configuration_is_refused(served: Served) -> None:
    served.config.write_text("nonsense")
    second = served.renew().decode()
    served.look(3)
    assert await served.certificate() == second
    states = served.gateway.freshness.report()
    assert (states["configuration"].stale, states["certificates"].stale) == (True, False)


async def test_certificate_without_its_key_is_refused_told_and_taken_when_both_are_there(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    first = served.cert.read_text()
    cert, key = self_signed()
    served.cert.write_bytes(cert)  # the key comes later
    served.look()
    assert await served.certificate() == first
    assert served.gateway.freshness.report()["certificates"].reason == "refused"
    assert "the certificates were refused, the old ones stay" in caplog.text
    for garbage in (b"", b"garbage", cert[: len(cert) // 2]):
        served.renew(cert=garbage)
        served.look()
        assert await served.certificate() == first
    served.cert.unlink()
    served.look()
    assert await served.certificate() == first
    served.renew(cert=cert, key=key)
    served.look()
    assert await served.certificate() == cert.decode()
    assert not served.gateway.freshness.is_stale


def with_password(key: Path) -> bytes:
    loaded = load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))


async def test_key_with_a_password_is_refused_and_holds_nobody_up(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL would ask for it: on the terminal, or else on the standard input, where nobody answers."""
    first = served.cert.read_text()
    served.key.write_bytes(with_password(served.key))
    served.look()
    assert "the private key has a password" in caplog.text
    assert served.gateway.freshness.report()["certificates"].stale
    assert await served.certificate() == first


async def test_demo_takes_other_settings(served: Served) -> None:
    served.config.write_text(served.config.read_text() + "max_body = 4096\n")
    served.look()
    assert served.gateway.config.server.max_body == 4096
    assert served.gateway.launcher.models == ["demo"]


async def test_asking_takes_the_certificates_as_well(served: Served) -> None:
    second = served.renew().decode()
    served.file.ask()
    served.look()
    assert await served.certificate() == second
