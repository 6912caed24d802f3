"""Single operations and the whole hot path, without sockets; the suite `micro` times and counts them."""
