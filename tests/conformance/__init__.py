"""RFC 6455 over a real socket. It can judge any echo server; README.md says how."""
