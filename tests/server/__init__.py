"""The server without sockets: a loop that is turned by hand, transports in memory, scripted streams."""
