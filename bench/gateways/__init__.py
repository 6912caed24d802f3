"""Gateways to compare, one adapter each: whether it is here, and how to start it in front of a provider."""
