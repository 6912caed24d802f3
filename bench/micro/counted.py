"""The program that runs under callgrind: does each named operation n and then 2n times, with marks between.

    python -m bench.micro.counted NAME ...

Not for people: `bench.micro.instructions` starts it and reads the profiles.
"""

from __future__ import annotations

import gc
import sys

from bench.micro.operations import OPERATIONS


def main() -> None:
    limit = sys.getrecursionlimit()
    # The interpreter's own call of this C function is the mark that callgrind writes a profile at: it has been in
    # the public API for ever, nothing else calls it here, and it changes nothing.
    mark = sys.setrecursionlimit
    gc.disable()  # when it runs depends on what was allocated before, by whomever
    for name in sys.argv[1:]:
        operation = OPERATIONS[name]
        run, count = operation.build(), operation.counted
        run(count)  # the interpreter adapts its code to what it meets
        mark(limit)
        run(count)
        mark(limit)
        run(2 * count)
        mark(limit)


if __name__ == "__main__":
    main()
