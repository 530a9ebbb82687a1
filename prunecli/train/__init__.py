"""Data and the one training loop."""
