"""Whether a socket has still something to send."""

from __future__ import annotations

import asyncio
import fcntl
import termios


def has_unsent(transport: asyncio.Transport) -> bool:
    """Whether a part of what was written has not reached the peer's system. It costs a system call."""
    if transport.get_write_buffer_size() > 0:
        return True
    # A transport of TLS does not count what waits below it; but then the socket's own buffer is not empty.
    unsent = bytearray(4)
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unsent)
    except OSError:  # this system does not tell
        return False
    return any(unsent)
