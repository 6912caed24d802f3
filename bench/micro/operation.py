"""What one operation is to the suite `micro`: something that can be done a given number of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Does the operation so many times.
Run = Callable[[int], None]


@dataclass(frozen=True)
class Operation:
    """One operation. `build` makes the objects that it works on, and checks that they do what they should.

    It is only ever done in multiples of `step`; instructions are counted over `counted` times, and twice as many.
    `beside` names the operation that it is compared with.
    """

    name: str
    what: str
    build: Callable[[], Run]
    step: int = 1
    counted: int = 500
    beside: str = ""

    def __post_init__(self) -> None:
        if self.counted % self.step:
            raise ValueError(f"{self.name}: `counted` is {self.counted}, no multiple of its step, {self.step}")
