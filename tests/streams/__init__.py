"""Streams without sockets: a scripted source, a store, and a clock that the test drives."""
