"""Generations without sockets: providers that the test plays, and a clock that it drives."""
