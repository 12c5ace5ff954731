"""Trains a policy: the loop and its parts."""
