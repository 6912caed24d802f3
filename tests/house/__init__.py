"""The rules of the house that neither the linter nor the import contracts can say."""
