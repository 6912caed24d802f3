"""The whole path against a model server that is not ours: `make test-real`."""
