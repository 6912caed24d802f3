"""Real processes in bad weather, and a checker that reads only what they wrote down. `python -m chaos --help`."""
