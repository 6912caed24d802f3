"""Which dialects there are, and which client's dialect can be answered by which provider's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from holdfast.dialects.ask import Ask
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import AnswerReader, Dialect
from holdfast.errors import ConfigError


class Translation(Protocol):
    """From one client's dialect to one provider's and back. Translation happens once, before the log."""

    def ask(self, ask: Ask) -> Ask:
        """Write the request in the provider's dialect.

        Raises `InvalidRequest` that names a field without a form there.
        """

    def reader(self, ask: Ask, reader: AnswerReader) -> AnswerReader:
        """Wrap the reader of the provider's answer: what comes out are entries in the client's dialect."""


class Dialects:
    """The table of a gateway. Equal dialects need no translation: bytes pass to the letter."""

    def __init__(
        self, dialects: Iterable[Dialect], translations: Mapping[tuple[str, str], Translation] | None = None
    ) -> None:
        """`translations` are by the names of the client's and of the provider's dialect."""
        self._dialects = {dialect.name: dialect for dialect in dialects}
        self._translations = dict(translations or {})

    @property
    def names(self) -> list[str]:
        return list(self._dialects)

    def get(self, name: str) -> Dialect:
        """Return a dialect. Raises `ConfigError` for a name that there is not."""
        dialect = self._dialects.get(name)
        if dialect is None:
            raise ConfigError(f"there is no API {name!r} ({', '.join(self.names)})")
        return dialect

    def can_answer(self, client: str, provider: str) -> bool:
        """Whether a provider of the one dialect can answer a request in the other."""
        return client == provider or (client, provider) in self._translations

    def translation(self, client: str, provider: str) -> Translation | None:
        """Return the translation, None where the dialects are equal. Raises KeyError where there is none."""
        return None if client == provider else self._translations[client, provider]


DIALECTS = Dialects([CHAT])
