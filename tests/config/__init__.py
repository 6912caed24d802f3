"""What a configuration file says, what is wrong with it and where, without sockets."""
