"""One connection as the pool of its origin sees it, and the states that it goes through."""

from __future__ import annotations

import math
from enum import Enum

# The states of a member, and what moves it. The shell calls the methods; the pool drains members also by itself.
#
#   state      | kept in     | moved by                                                           | to
#   -----------+-------------+--------------------------------------------------------------------+---------
#   CONNECTING | `_dials`    | opened()                                                           | READY
#   CONNECTING |             | open_failed(), close()                                             | GONE
#   READY      | `_ready`    | drain(), or its age is reached, with requests on it                | DRAINING
#   READY      |             | the same without requests; found_stale(), or its idle time is over | GONE
#   READY      |             | closed(), lend_failed(), close()                                   | GONE
#   DRAINING   | `_draining` | released() of its last request, closed(), close()                  | GONE
#   GONE       | -           | nothing; what is still reported of it is ignored                   |


class State(Enum):
    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class Member:
    """One connection as the pool sees it. Of its `capacity` slots, `used` are lent to requests."""

    __slots__ = (
        "avoid_until",
        "capacity",
        "idle_since",
        "is_patient",
        "keep_until",
        "number",
        "overdue_at",
        "ready_at",
        "retire_at",
        "state",
        "used",
    )

    def __init__(self, number: int, overdue_at: float) -> None:
        self.state = State.CONNECTING
        self.number = number
        self.used = 0
        self.capacity = 0
        self.is_patient = True
        self.overdue_at = overdue_at
        self.ready_at = 0.0
        self.retire_at = math.inf
        self.idle_since = 0.0
        self.keep_until = math.inf
        self.avoid_until = 0.0
