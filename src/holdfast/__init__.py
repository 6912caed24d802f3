"""Holdfast keeps LLM streams alive. This package exports the client SDK; the gateway is `holdfast serve`."""
