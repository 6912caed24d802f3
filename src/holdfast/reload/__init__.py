"""Keeps a running gateway at what its files say: the configuration and the certificates.

looks     pure: when what was seen of files may be taken
changes   pure: what is another in a new configuration, and what it may not lose
follow    looks at the files, on a timer and on SIGHUP, and reloads the gateway
"""

from __future__ import annotations

from holdfast.reload.follow import ConfigFile

__all__ = ["ConfigFile"]
