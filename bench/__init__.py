"""Benchmarks of the gateway, run by `python -m bench` from the repository root; see `bench/__main__.py`.

Beside the suites there are programs of their own, such as `bench/soak.py`, which are run as files.
"""
