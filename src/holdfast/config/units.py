"""The types of numbers in settings: durations in seconds, sizes in bytes, counts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

#: A duration; never zero.
Seconds = Annotated[float, Meta(gt=0)]
#: A duration that may be zero.
Grace = Annotated[float, Meta(ge=0)]
#: Bytes.
Size = Annotated[int, Meta(ge=1024)]
Count = Annotated[int, Meta(ge=1)]
