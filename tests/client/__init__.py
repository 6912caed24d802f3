"""The client SDK against a gateway whose faults are scripted."""
