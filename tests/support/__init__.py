"""What tests of several folders stand on: peers of every kind, worlds to put them in, relays that cut."""
