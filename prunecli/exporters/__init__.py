"""Handing a model to a runtime: one function for each suffix."""
