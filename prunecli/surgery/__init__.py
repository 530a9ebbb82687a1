"""Cutting: decide what may go, cut a copy, prove the copy equal to the masked model."""
