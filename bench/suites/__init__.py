"""The suites of `python -m bench`: each module has `run(options)`, which returns a `SuiteResult`."""
