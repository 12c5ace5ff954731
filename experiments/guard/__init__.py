"""Measures what the guard prevents, what it costs, and how early it warns."""
