"""Who may ask, and what is read from the configuration about it."""
