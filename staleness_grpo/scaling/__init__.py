"""Finds laws, intervals and early signs in measurements of runs."""
