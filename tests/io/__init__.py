"""The whole gateway on loopback sockets; afterwards no task, connection or log is left."""
