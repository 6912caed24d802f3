"""What the API's routing table is made of."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from holdfast.admission.principal import Principal
from holdfast.server.listener.exchange import Exchange, Request

#: Answers an authenticated request; the text is what the path's one group matched.
Handler: TypeAlias = Callable[[Request, Exchange, Principal, str], Awaitable[None]]
Routes: TypeAlias = list[tuple[re.Pattern[str], dict[str, Handler]]]
