"""The load generator finds each planted fault; what suites measure processes with; what reports are made of."""
