"""The real command line as a process: signals, restarts, what it prints."""
