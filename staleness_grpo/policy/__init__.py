"""Implements the policy: a Flax decoder, its sampler and its log-probabilities."""
