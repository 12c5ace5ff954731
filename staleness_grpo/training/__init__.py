"""Trains a policy, with the training loop and its parts."""
