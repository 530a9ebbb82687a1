"""Recipes: what to do to a model, validated before anything is loaded."""
