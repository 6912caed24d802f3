"""Starts generations in a gateway of this process, without a client."""

from __future__ import annotations

from holdfast.admission.principal import Principal
from holdfast.app import Gateway
from holdfast.dialects.chat import CHAT
from holdfast.errors import HoldfastError
from holdfast.generation.launcher import Started, Terms
from holdfast.streams.stream import Stream


def launch(gateway: Gateway, body: bytes, *, keeps_running: bool = True) -> Stream:
    """Ask for a chat completion as the tenant `tenant`. Raises what refuses it."""
    answers: list[Started | HoldfastError] = []
    terms = Terms(detach_grace=0.0, keeps_running=keeps_running)
    gateway.launcher.create(Principal("tenant"), CHAT, body, terms, answers.append)
    (answer,) = answers
    if isinstance(answer, HoldfastError):
        raise answer
    return answer.stream
