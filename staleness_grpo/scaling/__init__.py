"""Fits scaling laws, computes intervals, and finds early signs of a collapse."""
