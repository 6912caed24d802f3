"""One process for each kind of client; each writes down what it saw, and can go on where a killed one stopped."""
