"""What clients can speak with: a line for each surface, which gets the process's services and returns routes."""

from __future__ import annotations

from holdfast.dialects.chat import CHAT
from holdfast.server.services import Surface
from holdfast.server.surfaces.generations import generations
from holdfast.server.surfaces.holdfast_session import sessions
from holdfast.server.surfaces.models import models
from holdfast.server.surfaces.streams import streams

SURFACES: tuple[Surface, ...] = (
    generations("/v1/chat/completions", CHAT),
    sessions("/v1/ws/stream", CHAT),
    streams,
    models,
)
