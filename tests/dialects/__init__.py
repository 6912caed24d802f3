"""Tests of what the APIs mean, without an event loop."""
