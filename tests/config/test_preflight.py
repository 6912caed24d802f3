"""What a start would open is opened by the check: files, their keys, the key store and the address."""

from __future__ import annotations

import datetime
import socket
import sqlite3
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.config import parse
from holdfast.config.problems import Problem
from holdfast.preflight import inspect, inspect_modes
from holdfast_tools.simulate.certificate import self_signed

In = Callable[[str], Path]


def found(text: str) -> dict[tuple[str | int, ...], str]:
    return {problem.path: problem.message for problem in inspect(parse(text))}


def tls(cert: Path, key: Path) -> str:
    return f'[server]\ntls_cert = "{cert}"\ntls_key = "{key}"\n'


def provider(setting: str) -> str:
    return f'[providers.a]\nbase_url = "https://a.example/v1"\n{setting}\n[models.m]\nroute = ["a/x"]\n'


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, data in zip((cert, key), self_signed(), strict=True):
        path.write_bytes(data)
    key.chmod(0o600)
    return cert, key


def test_what_can_be_opened_is_no_problem_and_nothing_is_made(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    store = tmp_path / "keys.db"
    text = tls(cert, key) + f'[auth]\nkey_store = "{store}"\n'
    text += provider(f'ca_file = "{cert}"\nclient_cert = "{cert}"\nclient_key = "{key}"')
    assert found(text) == {}
    assert not store.exists()
    KeyStore(store).prepare()
    KeyStore(store).create(NewKey("app"))
    assert found(text) == {}


def test_tls_file_that_is_missing_garbage_or_of_another_key_is_named(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    cert, key = pair
    other, garbage = tmp_path / "other.pem", tmp_path / "garbage.pem"
    other.write_bytes(self_signed()[1])
    garbage.write_text("garbage")
    assert "cannot be read: No such file" in found(tls(tmp_path / "none.pem", key))[("server", "tls_cert")]
    assert "cannot be read: No such file" in found(tls(cert, tmp_path / "none.pem"))[("server", "tls_key")]
    assert "cannot be used" in found(tls(garbage, key))[("server", "tls_cert")]
    assert "cannot be used" in found(tls(cert, garbage))[("server", "tls_cert")]
    assert "is not the key of the certificate" in found(tls(cert, other))[("server", "tls_key")]


def test_certificate_that_has_expired_is_warned_of(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    then = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(then - datetime.timedelta(1)).not_valid_after(then)
    cert.write_bytes(builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (problem,) = inspect(parse(tls(cert, key)))
    assert problem == Problem(("server", "tls_cert"), "has expired on 2020-01-02", is_warning=True)


def test_certificate_in_a_form_that_openssl_alone_reads_is_no_problem(pair: tuple[Path, Path]) -> None:
    cert, key = pair
    cert.write_text(cert.read_text().replace(" CERTIFICATE-", " TRUSTED CERTIFICATE-"))
    assert found(tls(cert, key)) == {}


def test_key_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return found(f'[auth]\nkey_store = "{path}"\n')[("auth", "key_store")]

    garbage, other, folder = tmp_path / "garbage.db", tmp_path / "other.db", tmp_path / "folder.db"
    garbage.write_bytes(b"garbage " * 1000)
    folder.mkdir()
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "there is no folder" in said(tmp_path / "nowhere" / "keys.db")
    assert "cannot be used as a key store" in said(garbage)
    assert "another version" in said(other)
    assert said(folder)


def test_empty_key_store_is_no_problem_as_it_is_none_for_a_start(tmp_path: Path) -> None:
    store = tmp_path / "keys.db"
    store.touch()
    assert found(f'[auth]\nkey_store = "{store}"\n') == {}
    assert store.read_bytes() == b""
    KeyStore(store).prepare()


def test_key_that_a_start_leaves_out_is_a_warning_and_the_store_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = KeyStore(path)
    store.prepare()
    record, _ = store.create(NewKey("web"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE keys SET models = '['")
    connection.close()
    path.chmod(0o644)
    before = path.read_bytes()
    (problem,) = inspect(parse(f'[auth]\nkey_store = "{path}"\n'))
    assert (problem.path, problem.is_warning) == (("auth", "key_store"), True)
    assert f"leaves out the key {record.id!r}: models" in problem.message
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (before, 0o644)


@pytest.mark.parametrize("field", ["ca_file", "client_cert"])
def test_tls_file_of_a_provider_that_cannot_be_used_is_named(tmp_path: Path, field: str) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    missing = found(provider(f'{field} = "{tmp_path}/none.pem"'))
    assert "cannot be read: No such file" in missing[("providers", "a", field)]
    assert f"{field} '{garbage}'" in found(provider(f'{field} = "{garbage}"'))[("providers", "a")]


def test_keys_of_an_issuer_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    text = f'[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_file = "{path}"\n'
    where = ("auth", "jwt", "jwks_file")
    assert "No such file" in found(text)[where]
    path.write_text("[]")
    assert "not a JSON Web Key Set" in found(text)[where]
    path.write_text('{"keys": []}')
    assert "has no key" in found(text)[where]


def test_address_of_another_machine_is_named() -> None:
    hash_ = "sha256:" + "1" * 64
    assert (
        "cannot listen on 192.0.2.1"
        in found(f'[server]\nhost = "192.0.2.1"\n[keys.a]\nhash = "{hash_}"\n')[("server", "host")]
    )


def test_other_address_of_this_machine_as_a_provider_is_warned_of() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, and finds our own address
        own = probe.getsockname()[0]
    text = f'[server]\nhost = "0.0.0.0"\nport = 8123\n[keys.a]\nhash = "sha256:{"1" * 64}"\n'
    text += '[providers.a]\nbase_url = "http://{}/v1"\n[models.m]\nroute = ["a/x"]\n'
    warning = Problem(("providers", "a", "base_url"), "is the address of this gateway itself", is_warning=True)
    assert inspect(parse(text.format(f"{own}:8123"))) == [warning]
    for other in (f"{own}:8124", "192.0.2.1:8123", "a.example:8123"):
        assert inspect(parse(text.format(other))) == []


def test_what_is_wrong_already_is_not_told_again(tmp_path: Path) -> None:
    config = parse(provider(f'ca_file = "{tmp_path}/none.pem"'))
    assert inspect(config, [Problem(("providers", "a", "ca_file"), "wrong")]) == []
    assert inspect(config, [Problem(("providers", "a", "ca_file"), "odd", is_warning=True)]) != []


@pytest.mark.parametrize(
    ("secret", "path"),
    [
        (provider('api_key = "sk-1"'), ("providers", "a", "api_key")),
        (provider('headers = { Authorization = "x" }'), ("providers", "a", "headers", "Authorization")),
        (provider('proxy = "http://user:pass@h:1"'), ("providers", "a", "proxy")),
        (f'[auth]\ntoken_secret = "{"s" * 32}"\n', ("auth", "token_secret")),
        (f'[auth]\nadmin_key = "{"s" * 32}"\n', ("auth", "admin_key")),
        (provider('api_key = "env:PATH"'), None),
        (f'[auth]\nadmin_key = "sha256:{"1" * 64}"\n', None),
    ],
)
def test_secret_in_a_file_that_others_may_read_is_warned_of(
    tmp_path: Path, secret: str, path: tuple[str, ...] | None
) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text(secret)

    def warned() -> list[Problem]:
        return list(inspect_modes(file, tomllib.loads(secret), parse(secret)))

    for mode in (0o600, 0o640, 0o400):
        file.chmod(mode)
        assert warned() == []
    for mode in (0o644, 0o604, 0o620):
        file.chmod(mode)
        assert [problem.path for problem in warned()] == ([] if path is None else [path])
        assert all(problem.is_warning and f"{mode:04o}" in problem.message for problem in warned())


def test_private_key_that_others_may_read_is_warned_of(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    text = tls(cert, key)
    file = tmp_path / "holdfast.toml"
    file.write_text(text)
    assert list(inspect_modes(file, tomllib.loads(text), parse(text))) == []
    key.chmod(0o644)
    (problem,) = inspect_modes(file, tomllib.loads(text), parse(text))
    assert (problem.path, problem.is_warning) == (("server", "tls_key"), True)
