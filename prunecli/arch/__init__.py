"""Architectures: how they are named, built and recognised."""
