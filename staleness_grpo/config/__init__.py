"""Holds the default configuration, and refuses configs that cannot be run."""
