"""When a changed file is taken, what it may not lose, and what is told of it."""
