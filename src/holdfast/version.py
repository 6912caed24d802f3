"""The version, in one place: the build, the SDK and the gateway read it here."""

__version__ = "0.1.0"
