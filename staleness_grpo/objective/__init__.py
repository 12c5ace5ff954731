"""Computes the GRPO surrogate, its corrections and advantages, as pure functions of arrays."""
