"""Loads certificates, the server's own and those that providers are shown."""

from __future__ import annotations

import ssl


def load_pair(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Load a certificate chain and its private key; the key may stand in the same file.

    Raises `OSError` or `ValueError` where they cannot be used. A key with a password cannot: OpenSSL would ask for
    it on the terminal, and the whole process would wait for the answer.
    """
    context.load_cert_chain(cert, key, password=_refuse_password)


def _refuse_password() -> str:
    raise ValueError("the private key has a password, and nobody is there to type it")
