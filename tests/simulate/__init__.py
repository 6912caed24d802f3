"""The simulated provider's decisions, without sockets."""
