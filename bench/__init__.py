"""Benchmarks of the gateway, run by `python -m bench` from the repository root; see `bench/__main__.py`.

Beside the suites there is a program of its own, `python -m bench.simulate_cost`.
"""
