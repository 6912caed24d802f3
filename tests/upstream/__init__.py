"""What providers are asked and how their answers are read, without sockets."""
