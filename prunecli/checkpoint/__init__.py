"""Files: reading checkpoints of every kind, writing the container."""
