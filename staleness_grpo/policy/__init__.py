"""Holds the policy: one Flax decoder, its sampler and its log-probabilities."""
