"""All operations of the suite `micro`."""

from __future__ import annotations

from bench.micro import codecs, decisions, hot_path
from bench.micro.operation import Operation

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*hot_path.OPERATIONS, *codecs.OPERATIONS, *decisions.OPERATIONS)
}
