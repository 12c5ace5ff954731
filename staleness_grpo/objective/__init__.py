"""Computes the GRPO surrogate with an explicit behavior policy, by pure functions of arrays."""
