"""The simulated provider on loopback sockets, on both event loops."""
